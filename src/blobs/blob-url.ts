import { join } from "node:path";

import type { Config } from "#platform/config.ts";

/** Where the blobs are: BLOB_URL, else a folder beside the embedded database. */
export const blobUrlOf = ({ BLOB_URL, DATA_DIR }: Pick<Config, "BLOB_URL" | "DATA_DIR">): string =>
  BLOB_URL ?? `file://${join(DATA_DIR, "blobs")}`;

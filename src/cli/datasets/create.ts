/** `datasets create`: sends a manifest, an archive or a folder, and says what the server made of it. */
import { randomUUID } from "node:crypto";

import { createForm, type Upload } from "../api/multipart.ts";
import { ApiProblem } from "../api/problem.ts";
import { BadRows, DatasetReply } from "../api/replies.ts";
import { wireJsonText } from "#contract/wire-json.ts";
import { createBar } from "../bars.ts";
import type { Customer } from "../customer-options.ts";
import { interruptible } from "../interrupt.ts";
import { bytesText } from "../output.ts";
import { badRowsText, datasetText } from "./show.ts";
import { openSource } from "./source.ts";
import { Compile } from "typebox/compile";

export interface CreateRequest {
  readonly path: string;
  /** As the API takes them; undefined ones are left out. */
  readonly params: Readonly<Record<string, unknown>>;
  readonly idempotencyKey: string | undefined;
}

const MB = 1_000_000;

/** Throws what the server refused it with; bad rows are shown before. */
export async function createDataset(customer: Customer, request: CreateRequest): Promise<DatasetReply> {
  const source = await openSource(request.path);
  if (source.leftOut > 0) {
    process.stderr.write(
      `${source.leftOut} ${source.leftOut === 1 ? "file" : "files"} of ${request.path} left out: neither frame, actions nor manifest.jsonl.\n`,
    );
  }
  const form = createForm([
    ["params", wireJsonText(request.params)],
    [source.part, source.upload satisfies Upload],
  ]);
  const bar = createBar(`  uploading {bar} {percentage} %  {text}`, source.contentBytes);
  const onSent = (bytes: number): void => {
    const isAll = bytes >= source.contentBytes;
    bar.update(
      Math.min(bytes, source.contentBytes),
      isAll ? "the server checks it" : `${(bytes / MB).toFixed(1)} of ${bytesText(source.contentBytes)}`,
    );
  };
  const idempotencyKey = request.idempotencyKey ?? `cli-${randomUUID()}`;
  try {
    return await interruptible(
      (signal) => customer.api.post("/v1/datasets", DatasetReply, { form, idempotencyKey, signal, onSent }),
      () => "Interrupted; what was not sent whole does not become a dataset.",
    );
  } catch (error) {
    bar.stop();
    const problems = error instanceof ApiProblem ? problemsOf(error) : null;
    if (problems !== null) process.stderr.write(`${badRowsText(problems)}\n`);
    throw error;
  } finally {
    bar.stop();
  }
}

export function tellCreated({ out }: Customer, dataset: DatasetReply): void {
  const { problems = [], rows } = dataset;
  if (problems.length > 0) {
    process.stderr.write(`${badRowsText(problems)}\n`);
    if (rows.invalid > problems.length)
      process.stderr.write(
        `… and ${rows.invalid - problems.length} more: datasets rows ${dataset.id} --state invalid\n`,
      );
  }
  if (!out.json) out.say(datasetText(dataset));
}

const badRows = Compile(BadRows);

/** The rows that made the server refuse a dataset whole (`on_invalid: "reject"`). */
function problemsOf({ detail }: ApiProblem): BadRows | null {
  const problems: unknown =
    typeof detail === "object" && detail !== null && "problems" in detail ? detail.problems : null;
  return badRows.Check(problems) ? problems : null;
}

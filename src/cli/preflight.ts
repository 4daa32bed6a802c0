/** What a person can get wrong about `serve`, found before anything is made or started. Each is a UserError. */
import type { Manifest } from "#contract/manifest.ts";
import { defaultModelOf } from "#platform/bundles.ts";
import type { Config } from "#platform/config.ts";
import { findFfmpeg } from "#workers/inference/video/ffmpeg-path.ts";

import { findPortHolder, listenProblem } from "./ports.ts";
import { findRunningServer } from "./running-server.ts";
import { UserError } from "./user-error.ts";

export async function preflight(config: Config, manifests: readonly Manifest[]): Promise<void> {
  defaultModelOf(manifests, config.DEFAULT_MODEL);
  if (config.DATABASE_URL === undefined && (await findRunningServer(config.DATA_DIR))) {
    throw await alreadyServing(config.DATA_DIR);
  }
  const problem = await listenProblem(config.PORT, config.HOST);
  if (problem !== null) throw await cannotListen(config, problem);
  await findFfmpeg(config.FFMPEG_PATH).catch((error: unknown) => {
    const { message, cause } = error instanceof Error ? error : new Error(String(error));
    throw new UserError(`${message}${cause instanceof Error ? `: ${cause.message}` : ""}`, { cause: error });
  });
}

export async function alreadyServing(dataDir: string): Promise<UserError> {
  const other = await findRunningServer(dataDir);
  return new UserError(
    `Dream Engine already runs on ${dataDir}` +
      (other ? `: process ${other.pid}, ${other.url}\n` : ".\n") +
      "Use that one, stop it first, or start another one with its own data: DATA_DIR=another-folder PORT=8081 npm start",
  );
}

/** `code` is what Node says about listening on PORT of HOST. */
export async function cannotListen({ PORT, HOST }: Config, code: string): Promise<UserError> {
  switch (code) {
    case "EADDRINUSE": {
      const holder = await findPortHolder(PORT);
      return new UserError(
        `Port ${PORT} is in use${holder === null ? "" : ` by ${holder}`}.\n` +
          `Stop that program, or choose another port: PORT=${PORT === 8080 ? 8081 : 8080} npm start (PORT=0 picks a free one)`,
      );
    }
    case "EACCES":
      return new UserError(`This user may not listen on port ${PORT}. Choose one above 1023: PORT=8080 npm start`);
    default:
      return new UserError(`Cannot listen on ${HOST}:${PORT} (${code}). HOST has to be an address of this machine.`);
  }
}

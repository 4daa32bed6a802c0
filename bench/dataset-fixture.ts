/** Datasets of any size for the benchmark: sent to a real gateway, and brought to any point of their life. */
import { once } from "node:events";
import { readFile } from "node:fs/promises";
import { type ClientRequest, request } from "node:http";
import { setTimeout as delay } from "node:timers/promises";

import type { DatasetId } from "#contract/ids.ts";
import type { Database } from "#platform/database.ts";

const BOUNDARY = "dream-bench-boundary";
const LINES_PER_WRITE = 200;
const SAMPLE_EVERY_MS = 50;
/** Rows of one statement, which has a time limit. */
const DONE_AT_ONCE = 5_000;
const ACTIONS = 12;

export interface Ingested {
  readonly id: DatasetId;
  readonly seconds: number;
  readonly bytes: number;
  /** Of the gateway's process; null where /proc has no such thing. */
  readonly idle_mib: number | null;
  readonly peak_mib: number | null;
}

export interface Gateway {
  readonly url: string;
  readonly pid: number;
  readonly apiKey: string;
}

/** Streams a manifest of so many rows, which is never whole anywhere; they name uploads and carry a little metadata. */
export async function ingest(
  gateway: Gateway,
  rows: number,
  uploads: { readonly frame: string; readonly actions: string },
): Promise<Ingested> {
  const idle_mib = await residentMib(gateway.pid);
  let peak = idle_mib ?? 0;
  const over = new AbortController();
  const sampling = (async () => {
    while (!over.signal.aborted) {
      peak = Math.max(peak, (await residentMib(gateway.pid)) ?? 0);
      await delay(SAMPLE_EVERY_MS);
    }
  })();
  const startedAt = performance.now();
  try {
    const sent = request(`${gateway.url}/v1/datasets`, {
      method: "POST",
      headers: {
        authorization: `Bearer ${gateway.apiKey}`,
        "content-type": `multipart/form-data; boundary=${BOUNDARY}`,
      },
    });
    const answered = answerOf(sent);
    const bytes = await writeManifest(sent, rows, uploads);
    const answer = (await answered) as { id: DatasetId };
    const seconds = (performance.now() - startedAt) / 1000;
    return { id: answer.id, seconds, bytes, idle_mib, peak_mib: idle_mib === null ? null : peak };
  } finally {
    over.abort();
    await sampling;
  }
}

async function writeManifest(
  sent: ClientRequest,
  rows: number,
  uploads: { readonly frame: string; readonly actions: string },
): Promise<number> {
  const part = (name: string, more = ""): string =>
    `--${BOUNDARY}\r\ncontent-disposition: form-data; name="${name}"${more}\r\n\r\n`;
  const params = JSON.stringify({ start: false, num_steps: 1 });
  sent.write(`${part("params")}${params}\r\n${part("manifest", '; filename="manifest.jsonl"')}`);
  let bytes = 0;
  for (let n = 1; n <= rows; n += LINES_PER_WRITE) {
    const count = Math.min(LINES_PER_WRITE, rows - n + 1);
    const text = Array.from({ length: count }, (_, i) => `${lineOf(n + i, uploads)}\n`).join("");
    bytes += text.length;
    if (!sent.write(text)) await once(sent, "drain");
  }
  sent.end(`\r\n--${BOUNDARY}--\r\n`);
  return bytes;
}

function lineOf(n: number, uploads: { readonly frame: string; readonly actions: string }): string {
  return JSON.stringify({
    id: `episode-${String(n).padStart(7, "0")}`,
    start_frame: { upload: uploads.frame },
    actions: { upload: uploads.actions },
    seed: n,
    metadata: { episode: n, task: "push the T block onto its place", split: n % 10 === 0 ? "test" : "train" },
  });
}

async function answerOf(sent: ClientRequest): Promise<unknown> {
  const { promise, resolve, reject } = Promise.withResolvers<unknown>();
  sent.on("error", reject);
  sent.on("response", (response) => {
    const chunks: Buffer[] = [];
    response.on("data", (chunk: Buffer) => chunks.push(chunk));
    response.on("error", reject);
    response.on("end", () => {
      const text = Buffer.concat(chunks).toString();
      if (response.statusCode === 201) resolve(JSON.parse(text));
      else reject(new Error(`POST ${sent.path}: ${response.statusCode} ${text.slice(0, 500)}`));
    });
  });
  return promise;
}

/** VmRSS; null on systems without /proc. */
async function residentMib(pid: number): Promise<number | null> {
  try {
    const status = await readFile(`/proc/${pid}/status`, "utf8");
    return Number(/VmRSS:\s+(\d+) kB/.exec(status)?.[1]) / 1024;
  } catch {
    return null;
  }
}

export async function uploadOf(gateway: Gateway, file: Buffer): Promise<string> {
  const form = new FormData();
  form.set("file", new Blob([new Uint8Array(file)]), "input");
  const headers = { authorization: `Bearer ${gateway.apiKey}` };
  const answer = await fetch(`${gateway.url}/v1/uploads`, { method: "POST", body: form, headers });
  const body = (await answer.json()) as { id: string };
  if (answer.status !== 201) throw new Error(`POST /v1/uploads: ${answer.status} ${JSON.stringify(body)}`);
  return body.id;
}

/**
 * Makes every pending row up to `n` one that has succeeded, with the rollout that made it, as if a night had passed; not
 * in the ledger, which knows no datasets. Nothing else may work on the dataset meanwhile.
 */
export async function passOver(db: Database, id: DatasetId, upToN: number): Promise<void> {
  const [from] = await db.query<{ n: number | null }>(
    "SELECT min(n) AS n FROM dataset_rows WHERE dataset_id = $1 AND state = 'pending'",
    [id],
  );
  for (let n = from?.n ?? upToN + 1; n <= upToN; n += DONE_AT_ONCE) {
    await db.query(
      `WITH passed AS (
         UPDATE dataset_rows
            SET state = 'succeeded', try = 1, rollout_id = 'rollout_' || md5(dataset_id || n),
                request_id = 'req_' || md5(n || dataset_id), frames = $4, engine_wall_ms = 100, finished_at = now(),
                video_key = 'datasets/' || dataset_id || '/videos/' || row_id || '.mp4', video_bytes = 7,
                charged_mils = $4 * 5
          WHERE dataset_id = $1 AND state = 'pending' AND n BETWEEN $2 AND $3
         RETURNING *
       ),
       made AS (
         INSERT INTO rollouts (id, customer_id, key_id, request_id, route, model, lane, status, attempt, k, frames,
                               actions_per_candidate, params, fingerprint, price_mils_per_frame, charge_mils,
                               frames_delivered, result, dispatched_at, finished_at, deadline_at, dataset_id, dataset_row)
         SELECT p.rollout_id, d.customer_id, d.key_id, p.request_id, 'dataset', d.model, 'bulk', 'succeeded', 1, 1, $4,
                $4 - 1, p.params, sha256(p.rollout_id::bytea), 5, $4 * 5, $4,
                jsonb_build_object('video_keys', jsonb_build_array(p.video_key), 'frames', $4,
                                   'timings', '{"engine_wall_ms":100,"fetch_ms":1,"encode_ms":1,"total_ms":102}'::jsonb),
                now(), now(), now() + interval '1 day', d.id, p.n
           FROM passed p JOIN datasets d ON d.id = p.dataset_id
       )
       UPDATE datasets d
          SET rows_pending = rows_pending - s.rows, rows_succeeded = rows_succeeded + s.rows,
              charged_mils = charged_mils + s.rows * $4 * 5, frames_delivered = frames_delivered + s.rows * $4
         FROM (SELECT count(*)::int AS rows FROM passed) s
        WHERE d.id = $1`,
      [id, n, Math.min(upToN, n + DONE_AT_ONCE - 1), ACTIONS + 1],
    );
  }
  // As autovacuum has done many times in such a night; here all of it happened within seconds.
  for (const table of ["dataset_rows", "rollouts", "datasets"]) await db.query(`VACUUM (ANALYZE) ${table}`);
}

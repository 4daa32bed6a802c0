/** pgbench running the accepting statement, beside which the benchmark of the ledger reports. */
import { execFile } from "node:child_process";
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { promisify } from "node:util";

import type { CustomerId, KeyId } from "#contract/ids.ts";
import { errorCode } from "#platform/error-code.ts";
import { newRollout } from "#test/support/ledger.ts";

import { ACCOUNTS_PER_CONNECTION, statementOf } from "./debits.ts";

const SECONDS = 1;

const execute = promisify(execFile);

/** A column of one row. */
const one = (value: string): string => `ARRAY[${value}]`;

/** pgbench with the same statement, its parameters made by expressions; null where it is not installed. Gives debits a second. */
export async function pgbenchOf(
  url: string,
  connections: number,
  dataDir: string,
): Promise<(() => Promise<number>) | null> {
  const version = await execute("pgbench", ["--version"]).catch((error: unknown) => {
    if (errorCode(error) === "ENOENT") return null;
    throw error;
  });
  if (!version) return null;
  const { text } = await statementOf(newRollout({ customer_id: "" as CustomerId, key_id: "" as KeyId })); // only its text
  const id = one(`'rol_pgbench_' || :id`);
  const values = [
    `('cus_bench_' || :n)`,
    id,
    one(`'key_bench_' || :n`),
    id.replace("rol_", "req_"),
    one("'predict'"),
    one("'pusht-small'"),
    one("'realtime'"),
    one("1"),
    one("49"),
    one("48"),
    one("jsonb_build_object('seed', '0', 'num_steps', 8, 'guidance', 0, 'prompt', '')"),
    one(`sha256(convert_to('rol_pgbench_' || :id, 'UTF8'))`),
    one("NULL"),
    one("now() + interval '1 minute'"),
    one("'predict · pusht-small · 49 frames'"),
    one("NULL"),
  ];
  const script = join(dataDir, "accept.sql");
  let run = 0;
  return async () => {
    run += 1;
    const lines = [
      `\\set n :client_id * ${ACCOUNTS_PER_CONNECTION} + random(0, ${ACCOUNTS_PER_CONNECTION - 1})`,
      // Unique without asking the server: run, client, and a count of its own.
      "\\set count :count + 1",
      `\\set id (${run} * 1000 + :client_id) * 10000000 + :count`,
      `${text.replaceAll(/\$(\d+)/g, (_, n: string) => values[Number(n) - 1] ?? "NULL")};`,
    ];
    await writeFile(script, `${lines.join("\n")}\n`);
    const settings = ["-n", "-M", "prepared", "-D", "count=0", "-T", String(SECONDS), "-f", script];
    const { stdout } = await execute("pgbench", [...settings, "-c", String(connections), "-j", "2", url]);
    return Number(/^tps = ([\d.]+)/m.exec(stdout)?.[1] ?? Number.NaN);
  };
}

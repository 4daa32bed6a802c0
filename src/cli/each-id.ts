/** One call for each of several ids: what the server refuses of one does not stop the others. */
import { ApiProblem } from "./api/problem.ts";
import { EXIT } from "./exit-codes.ts";

/** An error of one that was asked for alone is an error; of several, some did not succeed. Without an answer nobody goes on. */
export async function eachId(ids: readonly string[], call: (id: string) => Promise<void>): Promise<void> {
  const asked = new Set(ids);
  for (const id of asked) {
    try {
      await call(id);
    } catch (error) {
      if (!(error instanceof ApiProblem) || error.status === null) throw error;
      process.stderr.write(`${id}: ${error.message}\n`);
      process.exitCode = asked.size === 1 ? EXIT.error : EXIT.someFailed;
    }
  }
}

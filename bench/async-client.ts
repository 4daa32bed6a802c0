/** A customer who submits asynchronous rollouts and asks for their end, as cheaply as HTTP allows: it shares the machine. */
import { Agent, type IncomingHttpHeaders, request } from "node:http";

const BOUNDARY = "dream-bench-boundary";
/** `?wait=` of a question; an end comes long before. */
const WAIT_S = 30;
const ENDED = ["succeeded", "failed", "cancelled", "expired"];

export interface AsyncClient {
  /** Resolves when GET has said that it succeeded. */
  runOne(apiKey: string, seed: number): Promise<Times>;
  close(): void;
}

/** Milliseconds. */
export interface Times {
  readonly rolloutId: string;
  /** Until the 202. */
  readonly accepted: number;
  /** Until the answer that it has ended. */
  readonly ended: number;
  /** When that was, by the clock that PostgreSQL reads, too. */
  readonly endSeenAt: number;
}

export function createAsyncClient(
  url: string,
  inputs: { readonly frame: Buffer; readonly actionsNpy: Buffer },
  callers: number,
): AsyncClient {
  const agent = new Agent({ keepAlive: true, maxSockets: callers });
  const [before, after] = formAround(inputs);

  async function call(
    method: "GET" | "POST",
    path: string,
    apiKey: string,
    body?: Buffer,
  ): Promise<Record<string, unknown>> {
    const headers: IncomingHttpHeaders = {
      authorization: `Bearer ${apiKey}`,
      ...(body && {
        "content-type": `multipart/form-data; boundary=${BOUNDARY}`,
        "content-length": String(body.byteLength),
      }),
    };
    const { promise, resolve, reject } = Promise.withResolvers<Record<string, unknown>>();
    const sent = request(`${url}${path}`, { agent, method, headers }, (response) => {
      const chunks: Buffer[] = [];
      response.on("data", (chunk: Buffer) => chunks.push(chunk));
      response.on("error", reject);
      response.on("end", () => {
        const text = Buffer.concat(chunks).toString();
        const wanted = method === "POST" ? 202 : 200;
        if (response.statusCode !== wanted) reject(new Error(`${path}: ${response.statusCode} ${text.slice(0, 300)}`));
        else resolve(JSON.parse(text) as Record<string, unknown>);
      });
    });
    sent.on("error", reject);
    sent.end(body);
    return promise;
  }

  return {
    async runOne(apiKey, seed) {
      const startedAt = performance.now();
      const params = JSON.stringify({ seed, mode: "async" });
      const submitted = await call("POST", "/v1/rollouts", apiKey, Buffer.concat([before, Buffer.from(params), after]));
      const accepted = performance.now() - startedAt;
      const id = String(submitted["id"]);
      for (;;) {
        const { status } = await call("GET", `/v1/rollouts/${id}?wait=${WAIT_S}`, apiKey);
        if (!ENDED.includes(String(status))) continue;
        if (status !== "succeeded") throw new Error(`rollout ${id} ended as ${String(status)}`);
        return { rolloutId: id, accepted, ended: performance.now() - startedAt, endSeenAt: Date.now() };
      }
    },
    close: () => agent.destroy(),
  };
}

/** A form, but for the text of its `params`. */
function formAround({ frame, actionsNpy }: { readonly frame: Buffer; readonly actionsNpy: Buffer }): [Buffer, Buffer] {
  const part = (name: string, file?: string): string =>
    `--${BOUNDARY}\r\ncontent-disposition: form-data; name="${name}"${file === undefined ? "" : `; filename="${file}"`}\r\n\r\n`;
  const before = Buffer.concat([
    Buffer.from(part("start_frame", "frame.png")),
    frame,
    Buffer.from(`\r\n${part("actions", "actions.npy")}`),
    actionsNpy,
    Buffer.from(`\r\n${part("params")}`),
  ]);
  return [before, Buffer.from(`\r\n--${BOUNDARY}--\r\n`)];
}

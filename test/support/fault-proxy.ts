/** An HTTP proxy that hands requests on to one server, except those that a test wants to go wrong. */
import { createServer, type IncomingMessage, request as httpRequest, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";

export type Fault =
  | { readonly kind: "answer"; readonly status: number; readonly body: string }
  /** The connection is reset when that much of the answer's body has gone out. */
  | { readonly kind: "cut"; readonly afterBytes: number }
  /** The request is carried out, and its answer is lost. */
  | { readonly kind: "lose answer" }
  /** Nothing is ever said. */
  | { readonly kind: "hang" };

export interface FaultProxy {
  readonly endpoint: string;
  /** "PUT /bucket/key" of every request so far, those that went wrong included. */
  readonly seen: readonly string[];
  /** Decides what happens to each request from now on; null lets it pass. */
  fail(decide: (method: string, url: string) => Fault | null): void;
  stop(): Promise<void>;
}

const nothing: (method: string, url: string) => Fault | null = () => null;

export async function startFaultProxy(target: string): Promise<FaultProxy> {
  let decide = nothing;
  const seen: string[] = [];
  const { hostname, port } = new URL(target);

  function handle(request: IncomingMessage, answer: ServerResponse): void {
    const { method = "", url = "" } = request;
    seen.push(`${method} ${url}`);
    const fault = decide(method, url);
    if (fault?.kind === "answer") {
      request
        .resume()
        .once("end", () => answer.writeHead(fault.status, { "Content-Type": "application/xml" }).end(fault.body));
      return;
    }
    if (fault?.kind === "hang") {
      request.resume();
      return;
    }
    // The Host header goes on as it came: it is signed.
    const onward = httpRequest({ hostname, port, method, path: url, headers: request.headers }, (reply) => {
      if (fault?.kind === "lose answer") {
        reply.resume().once("end", () => answer.destroy());
        return;
      }
      answer.writeHead(reply.statusCode ?? 502, reply.rawHeaders);
      let left = fault?.kind === "cut" ? fault.afterBytes : Infinity;
      reply.on("data", (chunk: Buffer) => {
        if (chunk.length <= left) answer.write(chunk);
        else answer.write(chunk.subarray(0, left), () => request.socket.resetAndDestroy());
        left = Math.max(0, left - chunk.length);
      });
      reply.once("end", () => answer.end());
      reply.once("error", () => answer.destroy());
    });
    onward.once("error", () => answer.destroy()); // the server is gone: so is the connection
    answer.once("close", () => onward.destroy());
    request.pipe(onward);
  }

  const server = createServer(handle);
  await new Promise<void>((listening) => server.listen(0, "127.0.0.1", listening));
  return {
    endpoint: `http://127.0.0.1:${(server.address() as AddressInfo).port}`, // it listens
    seen,
    fail(next) {
      decide = next;
    },
    async stop() {
      server.closeAllConnections();
      await new Promise((closed) => server.close(closed));
    },
  };
}

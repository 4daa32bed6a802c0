/** A web server of somebody else's: it keeps what it was sent, and behaves as badly as it is told to. */
import { createServer, type IncomingMessage, type RequestListener, type Server, type ServerResponse } from "node:http";
import { createServer as createSecureServer } from "node:https";
import { type AddressInfo, createServer as createTcpServer, type Socket } from "node:net";

export interface Received {
  readonly method: string;
  readonly url: string;
  readonly headers: Readonly<Record<string, string>>;
  readonly body: string;
}

export interface Receiver {
  readonly url: string;
  readonly port: number;
  /** What arrived, in order; a request is in it as soon as all of it came. */
  readonly received: readonly Received[];
  /** Requests that arrived and are not answered yet, and the most of them at once. */
  readonly open: () => number;
  readonly openMax: () => number;
  stop(): Promise<void>;
}

/** `nth` counts from 0. Whoever does not end the response hangs. */
export type Behaviour = (response: ServerResponse, nth: number, received: Received) => void;

export const answers =
  (...statuses: readonly number[]): Behaviour =>
  (response, nth) => {
    response.writeHead(statuses[Math.min(nth, statuses.length - 1)] ?? 200).end("thanks");
  };

export async function startReceiver(
  behaviour: Behaviour,
  { tls }: { readonly tls?: { readonly cert: string; readonly key: string } } = {},
): Promise<Receiver> {
  const received: Received[] = [];
  let open = 0;
  let openMax = 0;

  async function take(request: IncomingMessage, response: ServerResponse): Promise<void> {
    open += 1;
    openMax = Math.max(openMax, open);
    response.on("close", () => (open -= 1));
    const chunks: Buffer[] = [];
    for await (const chunk of request as AsyncIterable<Buffer>) chunks.push(chunk);
    const { method = "", url = "", headers } = request;
    const one = {
      method,
      url,
      headers: Object.fromEntries(Object.entries(headers).map(([name, value]) => [name, String(value)])),
      body: Buffer.concat(chunks).toString(),
    };
    behaviour(response, received.push(one) - 1, one);
  }
  const listener: RequestListener = (request, response) => void take(request, response).catch(() => response.destroy());
  const server: Server = tls ? createSecureServer(tls, listener) : createServer(listener);
  const port = await listen(server);
  return {
    url: `${tls ? "https" : "http"}://127.0.0.1:${port}`,
    port,
    received,
    open: () => open,
    openMax: () => openMax,
    stop: () =>
      new Promise((resolve) => {
        server.close(() => resolve());
        server.closeAllConnections();
      }),
  };
}

/** Speaks no HTTP unless it is told the bytes. */
export async function startTcpReceiver(
  onConnection: (socket: Socket) => void,
): Promise<{ readonly port: number; readonly connections: () => number; stop(): Promise<void> }> {
  let connections = 0;
  const sockets = new Set<Socket>();
  const server = createTcpServer((socket) => {
    connections += 1;
    sockets.add(socket);
    socket.on("error", () => undefined);
    socket.on("close", () => sockets.delete(socket));
    onConnection(socket);
  });
  const port = await listen(server);
  return {
    port,
    connections: () => connections,
    stop: () =>
      new Promise((resolve) => {
        server.close(() => resolve());
        for (const socket of sockets) socket.destroy();
      }),
  };
}

async function listen(server: {
  listen(port: number, host: string, then: () => void): unknown;
  address(): unknown;
}): Promise<number> {
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  return (server.address() as AddressInfo).port; // a server that listens on TCP has one
}

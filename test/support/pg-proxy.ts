/**
 * A TCP proxy before PostgreSQL that knows its protocol well enough to break a connection at a chosen moment of a chosen
 * command. A command is what the server answers with one ReadyForQuery: a simple query, or everything up to a Sync.
 */
import { once } from "node:events";
import { connect, createServer, type AddressInfo, type Socket } from "node:net";

import type { Database } from "#platform/database.ts";
import type { Service } from "#platform/lifecycle.ts";

/**
 * `cut before`: the command never reaches the server. `cut after`: the server has done it, the client never hears.
 * `cut during`: the server gets it and loses us at once; nobody knows how far it comes. `delay`: it arrives late.
 */
export type Fault = "cut before" | "cut after" | "cut during" | { readonly delay_ms: number };

export interface Command {
  /** Of the query or of the prepared statement that is executed. */
  readonly text: string;
  /** Whether a transaction that was begun before it is still open. */
  readonly inTransaction: boolean;
}

export interface PgProxy extends Service {
  /** The database's URL with our address in it. */
  readonly url: string;
  /** Asked for every command; null lets it through. */
  faultOf: (command: Command) => Fault | null;
  /** Connections that a fault has ended. */
  readonly cuts: number;
  /** Resolves when the server has noticed every cut: what it was doing then is committed or rolled back. */
  untilServerNoticed(db: Database): Promise<void>;
}

const READY_FOR_QUERY = "Z".charCodeAt(0);
/** Of a client; the other requests without a type byte (TLS, cancel) are passed on as they are. */
const PROTOCOL_3 = 196_608;

export async function startPgProxy(databaseUrl: string): Promise<PgProxy> {
  const target = new URL(databaseUrl);
  const sockets = new Set<Socket>();
  const cutPorts = new Set<number>();
  let cuts = 0;

  const server = createServer((client) => {
    const upstream = connect(Number(target.port), target.hostname);
    for (const socket of [client, upstream]) {
      sockets.add(socket);
      socket.setNoDelay(true);
      socket.on("error", () => undefined); // its end is what counts
      socket.once("close", () => {
        sockets.delete(socket);
        client.destroy();
        upstream.destroy();
      });
    }
    const cut = (): void => {
      cuts += 1;
      if (upstream.localPort !== undefined) cutPorts.add(upstream.localPort);
      client.destroy();
      upstream.destroy();
    };
    relay(client, upstream, cut);
  });

  function relay(client: Socket, upstream: Socket, cut: () => void): void {
    const statements = new Map<string, string>();
    let started = false;
    let inTransaction = false;
    /** Bytes of the command that is coming in, and what it will execute. */
    let command: Buffer[] = [];
    let text = "";
    let cutAfterAnswer = false;
    /** Commands go on in their order, also when one is delayed. */
    let turn: Promise<void> = Promise.resolve();

    async function forward(bytes: Buffer, commandText: string): Promise<void> {
      const fault = proxy.faultOf({ text: commandText, inTransaction });
      if (fault === "cut before") return cut();
      if (typeof fault === "object" && fault !== null) await new Promise((done) => setTimeout(done, fault.delay_ms));
      if (fault === "cut after") cutAfterAnswer = true;
      if (fault === "cut during") {
        // Resolves when the bytes are the kernel's: the server will read them, and then the end of the connection.
        await new Promise<void>((done) => upstream.write(bytes, () => done()));
        return cut();
      }
      upstream.write(bytes);
    }

    const fromClient = messageReader((message) => {
      if (!started) {
        started = message.readInt32BE(4) === PROTOCOL_3;
        upstream.write(message);
        return started;
      }
      const type = String.fromCharCode(message[0] ?? 0);
      if (type === "Q") text = cString(message, 5);
      if (type === "P") {
        const name = cString(message, 5);
        text = cString(message, 5 + Buffer.byteLength(name) + 1);
        statements.set(name, text);
      }
      if (type === "B") {
        const portal = cString(message, 5);
        text = statements.get(cString(message, 5 + Buffer.byteLength(portal) + 1)) ?? text;
      }
      command.push(message);
      if (!"PBDECH".includes(type)) {
        const bytes = Buffer.concat(command);
        const commandText = text;
        command = [];
        // A password or a goodbye is no command.
        const isCommand = type === "Q" || type === "S";
        turn = turn.then(() => (isCommand ? forward(bytes, commandText) : void upstream.write(bytes)));
      }
      return true;
    });
    const fromServer = messageReader((message) => {
      const isEnd = message[0] === READY_FOR_QUERY;
      if (isEnd) inTransaction = message[5] !== "I".charCodeAt(0);
      if (!cutAfterAnswer) client.write(message);
      else if (isEnd) cut();
      return true;
    }, true);
    client.on("data", fromClient);
    upstream.on("data", fromServer);
  }

  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const url = new URL(databaseUrl);
  url.host = `127.0.0.1:${(server.address() as AddressInfo).port}`; // a server that listens on TCP has one

  const proxy: PgProxy = {
    url: url.href,
    faultOf: () => null,
    get cuts() {
      return cuts;
    },
    async untilServerNoticed(db) {
      const until = Date.now() + 20_000;
      while (cutPorts.size > 0) {
        const ports = [...cutPorts];
        const alive = await db.query(`SELECT pid FROM pg_stat_activity WHERE client_port = ANY ($1)`, [ports]);
        if (alive.length === 0) for (const port of ports) cutPorts.delete(port);
        else if (Date.now() > until) throw new Error("the server has not noticed that a connection is gone");
        else await new Promise((done) => setTimeout(done, 2));
      }
    },
    async stop() {
      for (const socket of sockets) socket.destroy();
      await new Promise((done) => server.close(done));
    },
  };
  return proxy;
}

/**
 * Cuts a stream into messages. Before `typed`, a message is a length and a body; `take` says when messages with a type
 * byte begin.
 */
function messageReader(take: (message: Buffer) => boolean, typed = false): (chunk: Buffer) => void {
  let rest: Buffer = Buffer.alloc(0);
  return (chunk) => {
    rest = rest.length === 0 ? chunk : Buffer.concat([rest, chunk]);
    for (;;) {
      const head = typed ? 5 : 4;
      if (rest.length < head) return;
      const length = rest.readInt32BE(head - 4) + (typed ? 1 : 0);
      if (rest.length < length) return;
      const message = rest.subarray(0, length);
      rest = rest.subarray(length);
      typed = take(message);
    }
  };
}

const cString = (message: Buffer, start: number): string => message.toString("utf8", start, message.indexOf(0, start));

/** TCP ports: a free one, and who has one that is not. */
import { randomInt } from "node:crypto";
import { readdir, readFile, readlink } from "node:fs/promises";
import { createServer } from "node:net";

import { errorCode } from "#platform/error-code.ts";
import { processInfo } from "#platform/processes.ts";

const LOOPBACK = "127.0.0.1";
/** How /proc/net/tcp writes the state. */
const LISTEN = "0A";

/**
 * Below what Linux, macOS and Windows take for outgoing connections (from 32768, 49152 on): one of those could have the port
 * before whoever asked for it listens.
 */
const LISTENERS = { from: 20_000, below: 32_768 } as const;
const TRIES_MAX = 20;

/** A port on loopback that nobody listens on at the moment. */
export async function freePort(pick: (from: number, below: number) => number = randomInt): Promise<number> {
  for (let tries = 0; tries < TRIES_MAX; tries++) {
    const port = pick(LISTENERS.from, LISTENERS.below);
    if (await isFree(port)) return port;
  }
  return listenFor(0, LOOPBACK);
}

export async function isFree(port: number, host = LOOPBACK): Promise<boolean> {
  return (await listenProblem(port, host)) === null;
}

/** Why one cannot listen there, as Node's error code (EADDRINUSE, EADDRNOTAVAIL, EACCES …); null when one can. */
export function listenProblem(port: number, host: string): Promise<string | null> {
  return listenFor(port, host).then(
    () => null,
    (error: unknown) => errorCode(error) ?? String(error),
  );
}

/** Listens for a moment; the port that it was. */
function listenFor(port: number, host: string): Promise<number> {
  return new Promise((resolve, reject) => {
    const server = createServer();
    server.once("error", reject);
    server.listen(port, host, () => {
      const address = server.address();
      server.close(() => {
        if (address !== null && typeof address === "object") resolve(address.port);
        else reject(new Error("a TCP server without a port"));
      });
    });
  });
}

/** Who listens on a port, as far as /proc tells: such as `node server.js (process 4711)`; null when it cannot be found out. */
export async function findPortHolder(port: number): Promise<string | null> {
  const inodes = await listeningSockets(port);
  if (inodes.size === 0) return null;
  for (const name of await readdir("/proc").catch(() => [])) {
    if (!/^\d+$/.test(name)) continue;
    const files = await readdir(`/proc/${name}/fd`).catch(() => []); // it ended, or belongs to another user
    for (const file of files) {
      const target = await readlink(`/proc/${name}/fd/${file}`).catch(() => "");
      const inode = /^socket:\[(\d+)\]$/.exec(target)?.[1];
      if (inode === undefined || !inodes.has(inode)) continue;
      const info = await processInfo(Number(name));
      return info && `${info.command.slice(0, 100)} (process ${name})`;
    }
  }
  return null;
}

async function listeningSockets(port: number): Promise<Set<string>> {
  const hexPort = port.toString(16).toUpperCase().padStart(4, "0");
  const tables = await Promise.all(
    ["/proc/net/tcp", "/proc/net/tcp6"].map((path) => readFile(path, "utf8").catch(() => "")), // no /proc here
  );
  const inodes = new Set<string>();
  for (const line of tables.join("\n").split("\n")) {
    const [, local, , state, , , , , , inode] = line.trim().split(/\s+/);
    if (local?.endsWith(`:${hexPort}`) === true && state === LISTEN && inode !== undefined) inodes.add(inode);
  }
  return inodes;
}

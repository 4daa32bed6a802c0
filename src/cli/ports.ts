/** TCP ports: a free one, and who has one that is not. */
import { readdir, readFile, readlink } from "node:fs/promises";
import { createServer } from "node:net";

import { processInfo } from "#platform/processes.ts";

const LOOPBACK = "127.0.0.1";
/** How /proc/net/tcp writes the state. */
const LISTEN = "0A";

/** A port on loopback that nobody listens on at the moment. */
export function freePort(): Promise<number> {
  return listenFor(0, LOOPBACK).then((port) => port ?? Promise.reject(new Error("no port is free")));
}

export async function isFree(port: number, host = LOOPBACK): Promise<boolean> {
  return (await listenFor(port, host)) !== null;
}

/** The port that could be listened on, or null. */
function listenFor(port: number, host: string): Promise<number | null> {
  return new Promise((resolve) => {
    const server = createServer();
    server.once("error", () => resolve(null));
    server.listen(port, host, () => {
      const address = server.address();
      server.close(() => resolve(address !== null && typeof address === "object" ? address.port : null));
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

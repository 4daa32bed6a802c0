/** Which process listens on a TCP port, so that "port in use" can say who. Best effort: needs /proc. */
import { readdir, readFile, readlink } from "node:fs/promises";

import { processInfo } from "#platform/processes.ts";

const LISTEN = "0A";

/** Such as `node server.js (process 4711)`; null when it cannot be found out. */
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

/** Which port somebody is told to listen on. */
import { createServer } from "node:net";

import { expect, onTestFinished, test } from "vitest";

import { freePort } from "#cli/ports.ts";

async function taken(): Promise<number> {
  const port = await freePort();
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(port, "127.0.0.1", resolve));
  onTestFinished(() => new Promise((resolve) => void server.close(() => resolve())));
  return port;
}

test("a free port is none that an outgoing connection could get, and none that somebody listens on", async () => {
  for (let i = 0; i < 20; i++) expect(await freePort()).toBeLessThan(32_768);
  const port = await taken();
  const next = await freePort();
  const picks = [port, port, next];
  expect(await freePort(() => picks.shift() ?? 0)).toBe(next);
});

test("where all that were picked are taken, the system gives one", async () => {
  const port = await taken();
  const other = await freePort(() => port);
  expect(other).toBeGreaterThan(0);
  expect(other).not.toBe(port);
});

/** The manifest of a dataset under fire: rows of every source there is, bad ones and poisonous ones, and what is to become of each. */
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";

import { npy } from "#test/support/npy.ts";

import type { Random } from "./random.ts";
import { POISON_SEED } from "./stand-in-worker.ts";

/**
 * `good`: becomes a video. `invalid`: is refused when it comes in. `unfetchable`: what its URL answers is no input.
 * `poison`: kills every worker that takes it.
 */
export type Fate = "good" | "invalid" | "unfetchable" | "poison";

export interface PlannedRow {
  readonly n: number;
  readonly id: string;
  readonly fate: Fate;
  readonly actions: number;
  readonly line: string;
}

export interface Inputs {
  readonly frame: Buffer;
  /** Of the example, `[T, 2]`. */
  readonly actions: Float32Array;
}

export interface Sources {
  /** Upload ids: of a frame, and of actions by their number. */
  readonly frameUpload: string;
  readonly actionsUpload: (actions: number) => string;
  /** Where startInputServer answers. */
  readonly url: string;
}

export const ACTION_COUNTS = [12, 24] as const;

export const actionsFile = (inputs: Inputs, actions: number): Buffer =>
  npy.write(inputs.actions.subarray(0, actions * 2), [actions, 2]);

export function planRows(
  random: Random,
  options: { readonly rows: number; readonly bad: number; readonly poison: number },
  inputs: Inputs,
  sources: Sources,
): PlannedRow[] {
  const fates = drawFates(random, options);
  return fates.map((fate, index) => {
    const n = index + 1;
    const id = `ep-${String(n).padStart(6, "0")}`;
    const actions = random.pick(ACTION_COUNTS);
    const row = {
      id,
      start_frame: frameOf(random, inputs, sources),
      actions: actionsOf(random, inputs, sources, actions),
      seed: fate === "poison" ? POISON_SEED + n : n,
      num_steps: 1,
      metadata: { n },
    };
    if (fate === "invalid") return { n, id, fate, actions, line: spoilt(random, row) };
    if (fate === "unfetchable")
      return { n, id, fate, actions, line: JSON.stringify(misdirected(random, row, sources)) };
    return { n, id, fate, actions, line: JSON.stringify(row) };
  });
}

/** So many of each, in places drawn by lot; the first row is good, so that a second one can take its id. */
function drawFates(random: Random, { rows, bad, poison }: { rows: number; bad: number; poison: number }): Fate[] {
  const fates: Fate[] = Array.from({ length: rows }, () => "good");
  const place = (fate: Fate): void => {
    let at = random.integer(1, rows - 1);
    while (fates[at] !== "good") at = random.integer(1, rows - 1);
    fates[at] = fate;
  };
  for (let i = 0; i < bad; i++) place(i % 3 === 2 ? "unfetchable" : "invalid");
  for (let i = 0; i < poison; i++) place("poison");
  return fates;
}

function frameOf(random: Random, { frame }: Inputs, { frameUpload, url }: Sources): object {
  return random.pick<object>([
    { base64: frame.toString("base64") },
    { upload: frameUpload },
    { url: `${url}/frame.png` },
  ]);
}

function actionsOf(random: Random, inputs: Inputs, { actionsUpload, url }: Sources, actions: number): object {
  return random.pick<object>([
    { base64: actionsFile(inputs, actions).toString("base64") },
    { upload: actionsUpload(actions) },
    { url: `${url}/actions-${actions}.npy` },
    Array.from({ length: actions }, (_, t) => [...inputs.actions.subarray(2 * t, 2 * t + 2)]),
  ]);
}

/** A line that nobody can take for a row. */
function spoilt(random: Random, row: Record<string, unknown>): string {
  const spoils: [() => string, ...(() => string)[]] = [
    () => JSON.stringify(row).slice(0, -1),
    () => JSON.stringify({ ...row, sead: 7 }),
    () => JSON.stringify({ ...row, id: "ep-000001" }),
    () => JSON.stringify({ ...row, actions: [[0, 0, 0]] }),
    () => JSON.stringify({ ...row, start_frame: { base64: Buffer.from("no picture").toString("base64") } }),
    () => JSON.stringify({ ...row, start_frame: { upload: "upload_00000000000000000000000000000000" } }),
    () => JSON.stringify({ ...row, num_steps: 0 }),
  ];
  return random.pick(spoils)();
}

function misdirected(random: Random, row: Record<string, unknown>, { url }: Sources): object {
  return random.pick([
    { ...row, start_frame: { url: `${url}/nowhere.png` } },
    { ...row, start_frame: { url: `${url}/actions-12.npy` } },
    { ...row, actions: { url: `${url}/frame.png` } },
  ]);
}

/** Serves the inputs that rows name by URL, and 404 for anything else. */
export async function startInputServer(inputs: Inputs): Promise<{ readonly url: string; stop(): Promise<void> }> {
  const files = new Map([
    ["/frame.png", inputs.frame],
    ...ACTION_COUNTS.map((actions) => [`/actions-${actions}.npy`, actionsFile(inputs, actions)] as const),
  ]);
  const server = createServer((request, response) => {
    const file = files.get(request.url ?? "");
    response.statusCode = file ? 200 : 404;
    response.end(file);
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const { port } = server.address() as AddressInfo; // listening on TCP
  return {
    url: `http://127.0.0.1:${port}`,
    stop: () =>
      new Promise((resolve) => {
        server.closeAllConnections();
        server.close(() => resolve());
      }),
  };
}

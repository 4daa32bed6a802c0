/**
 * Customers of the deployment while its parts are killed: each asks one thing after the other, through one gateway and the
 * next in turn, and remembers what it was told. They try again as the published client does.
 */
import { readFileSync } from "node:fs";
import { setTimeout as delay } from "node:timers/promises";

import type { CreatedKey } from "#keys/keys.ts";
import { npy } from "#test/support/npy.ts";

import { createPatientClient, type PatientClient } from "../../chaos/patient-client.ts";

export const MODEL = "pusht-small";
/** One chunk, and the first frame is the start frame. */
export const ACTIONS = 12;

export interface Told {
  readonly customer: CreatedKey;
  readonly kind: Kind;
  /** Its end: the status of the HTTP answer where somebody waited, else of the rollout. */
  readonly end: number | string;
  /** Null where the answer has none: an error. */
  readonly rolloutId: string | null;
  /** When the request was made, to tell what began after a fault. */
  readonly askedMs: number;
}

const KINDS = ["async", "sync", "batch"] as const;
type Kind = (typeof KINDS)[number];
const ENDS = new Set(["succeeded", "failed", "cancelled", "expired"]);

const frame = readFileSync(`models/${MODEL}/example/start_frame.png`);
const values = npy.read(readFileSync(`models/${MODEL}/example/actions.npy`));
const actions = npy.write(values.subarray(0, 2 * ACTIONS), [ACTIONS, 2]);

/** Until `over`; `told` grows as answers come. */
export async function keepAsking(
  customer: CreatedKey,
  gateways: readonly string[],
  told: Told[],
  over: AbortSignal,
): Promise<void> {
  const clients = gateways.map((url) => createPatientClient(url, customer.api_key));
  for (let n = 0; !over.aborted; n++) {
    const kind = KINDS[n % KINDS.length] ?? "async";
    const [client, other] = n % 2 === 0 ? clients : clients.toReversed();
    if (!client || !other) throw new Error("expected two gateways");
    told.push(await ask(customer, kind, n, client, other));
  }
}

/** An asynchronous one is asked after at the other gateway. */
export async function ask(
  customer: CreatedKey,
  kind: Kind,
  seed: number,
  client: PatientClient,
  other: PatientClient,
): Promise<Told> {
  const askedMs = performance.now();
  const done = { customer, kind, askedMs };
  if (kind === "batch") {
    const answer = await client.post("/v1/predict/batch", () => batchForm(seed));
    return { ...done, end: answer.status, rolloutId: null };
  }
  const params = { seed, num_steps: 1, ...(kind === "async" && { mode: "async" }) };
  const headers = { "idempotency-key": `topology-${seed}` };
  const answer = await client.post("/v1/rollouts", () => rolloutForm(params), headers);
  if (answer.status >= 300) return { ...done, end: answer.status, rolloutId: null };
  const { id } = answer.json() as { id: string }; // of a 200 or 202
  if (kind === "sync") return { ...done, end: answer.status, rolloutId: id };
  for (;;) {
    const { status } = (await other.get(`/v1/rollouts/${id}?wait=5`)).json() as { status?: string };
    if (status !== undefined && ENDS.has(status)) return { ...done, end: status, rolloutId: id };
    await delay(100); // an error, too: the database is away, or has just come back
  }
}

function rolloutForm(params: object): FormData {
  const form = new FormData();
  form.set("start_frame", new Blob([frame]), "frame.png");
  form.set("actions", new Blob([new Uint8Array(actions)]), "actions.npy");
  form.set("params", JSON.stringify(params));
  return form;
}

function batchForm(seed: number): FormData {
  const form = new FormData();
  form.set("frame", new Blob([frame]), "frame.png");
  for (const name of ["a.npy", "b.npy"]) form.append("actions", new Blob([new Uint8Array(actions)]), name);
  form.set("seed", String(seed));
  form.set("num_steps", "1");
  return form;
}

/**
 * From a pending row to what a rollout takes: inputs are fetched, checked against the model, normalised and put where the
 * rollout's worker will look. Nothing is paid for yet. Doing it again gives the same rollout and the same blobs; inputs
 * of a rollout that never came to be are swept as those of a refused request are.
 */
import { ApiError } from "#contract/errors.ts";
import { newRequestId, type RandomBytes } from "#contract/ids.ts";
import { blobKeys } from "#contract/jobs.ts";
import { ACTIONS_PER_ROLLOUT_MAX, DATASET_ROW_EXPIRES_MS } from "#contract/limits.ts";
import type { Manifest } from "#contract/manifest.ts";
import { fingerprintOf } from "#inputs/fingerprint.ts";
import type { Frame, NormaliseFrame } from "#inputs/frame.ts";
import { actionsBytes, parseActions } from "#inputs/npy.ts";
import type { Clock } from "#platform/clock.ts";
import { createSlots } from "#platform/slots.ts";
import type { NewRollout } from "#rollouts/rollout.ts";

import type { Dataset } from "./dataset.ts";
import { fetchActions, type FetchParts, withFrame } from "./fetch-input.ts";
import { rowRolloutId } from "./rollout-id.ts";
import type { DatasetRow, InputRef } from "./row.ts";

/** Rows of one dataset whose inputs are fetched at once: what a server that hangs can hold of us. */
const ROWS_AT_ONCE = 8;
/** Of those whose start frames are large. */
const LARGE_AT_ONCE = 2;

export interface RunModel {
  readonly manifest: Manifest;
  /** Of bundleIdentity. */
  readonly identity: string;
}

export interface PrepareParts extends Omit<FetchParts, "signal"> {
  readonly normaliseFrame: NormaliseFrame;
  readonly clock: Clock;
  readonly random: RandomBytes;
}

/** After this no further row of the slice is begun, so that a server that hangs keeps a slice, and what it holds, short. */
const BEGIN_FOR_MS = 10_000;

/** What became of a row: ready to be paid for, or failed at no charge. */
export type Prepared =
  | { readonly row: DatasetRow; readonly rollout: NewRollout }
  | { readonly row: DatasetRow; readonly code: string; readonly message: string };

/** In the order of `rows`, without those whose turn did not come in time and those that `signal` interrupted. */
export async function prepareRows(
  dataset: Dataset,
  rows: readonly DatasetRow[],
  model: RunModel,
  parts: PrepareParts,
  signal: AbortSignal,
): Promise<Prepared[]> {
  const slots = createSlots(ROWS_AT_ONCE);
  const large = createSlots(LARGE_AT_ONCE);
  const beginUntilMs = parts.clock.now() + BEGIN_FOR_MS;
  const broken = new AbortController();
  const end = AbortSignal.any([signal, broken.signal]);
  const fetchParts: FetchParts = { ...parts, signal: end };
  /** Many rows of a dataset begin at the same frame. */
  const frames = new Map<string, Promise<Frame>>();

  function frameOf(ref: InputRef): Promise<Frame> {
    const name = ref.kind === "url" ? `url ${ref.url}` : `blob ${ref.key}`;
    const known = frames.get(name);
    if (known) return known;
    const frame = withFrame(ref, large, fetchParts, (file) =>
      parts.normaliseFrame(file, model.manifest.shapes, "start_frame"),
    );
    frames.set(name, frame);
    return frame;
  }

  async function prepare(row: DatasetRow): Promise<Prepared | null> {
    const giveBack = await slots.take();
    try {
      if (end.aborted || parts.clock.now() > beginUntilMs) return null;
      return { row, rollout: await rolloutOf(row) };
    } catch (error) {
      if (end.aborted) return null;
      if (error instanceof ApiError) return { row, code: error.code, message: error.message };
      // Not the row's fault (the blob store is away): it ends the slice, and the others with it.
      broken.abort();
      throw error;
    } finally {
      giveBack();
    }
  }

  async function rolloutOf(row: DatasetRow): Promise<NewRollout> {
    const { source, params, n } = row;
    if (!source || !params) throw new Error(`row ${n} of ${dataset.id} is pending and has no inputs`); // a constraint
    const [frame, file] = await Promise.all([frameOf(source.frame), fetchActions(source.actions, fetchParts)]);
    const shape = { ...model.manifest.shapes, actions_max: ACTIONS_PER_ROLLOUT_MAX };
    const actions = parseActions(file, shape, "actions");
    if (row.num_actions !== null && row.num_actions !== actions.count) {
      throw new ApiError(
        "invalid_input",
        `actions: expected ${row.num_actions} of them, as num_actions says, got ${actions.count}`,
      );
    }
    const id = rowRolloutId(dataset.id, n, row.try + 1);
    const bytes = actionsBytes([actions]);
    await Promise.all([parts.blobs.put(blobKeys.frame(id), frame.png), parts.blobs.put(blobKeys.actions(id), bytes)]);
    return {
      id,
      key_id: dataset.key_id,
      customer_id: dataset.customer_id,
      request_id: newRequestId(parts.random),
      route: "dataset",
      model: dataset.model,
      lane: "bulk",
      k: 1,
      actions_per_candidate: actions.count,
      params,
      fingerprint: fingerprintOf({
        bundle: model.identity,
        pixels: frame.pixels,
        actions: bytes,
        k: 1,
        params,
        scored: false,
      }),
      idempotency_key: null,
      waiter_id: null,
      deadline_at: new Date(parts.clock.now() + DATASET_ROW_EXPIRES_MS),
      webhook_url: null,
      dataset: { id: dataset.id, row: n },
      scored: false,
    };
  }

  // All of them are over before this is, also when one throws.
  const prepared = await Promise.allSettled(rows.map(prepare));
  return prepared.flatMap((each) => {
    if (each.status === "rejected") throw each.reason;
    return each.value === null ? [] : [each.value];
  });
}

/** What a webhook says: `{type, timestamp, data}`, built anew for each attempt so that its links have not expired. */
import type { DatasetId, EndpointId, RolloutId } from "#contract/ids.ts";
import type { Manifest } from "#contract/manifest.ts";
import { wireJsonText } from "#contract/wire-json.ts";
import { type Dataset, DATASET_COLUMNS } from "#datasets/dataset.ts";
import { type DatasetEnvelope, datasetEnvelope } from "#datasets/envelope.ts";
import { datasetContext } from "#datasets/find.ts";
import type { Sql } from "#platform/database.ts";
import { envelopeOf, type RolloutEnvelope } from "#rollouts/envelope.ts";
import { type Rollout, ROLLOUT_COLUMNS } from "#rollouts/rollout.ts";
import type { VideoLinks, Videos } from "#rollouts/video-links.ts";

import type { Claimed } from "./deliveries.ts";
import { readEndpoint } from "./endpoints.ts";
import { type WebhookEnvelope, webhookEnvelope } from "./envelope.ts";

export interface MessageParts {
  readonly db: Sql;
  readonly videoLinks: VideoLinks;
  /** What links of the gateway begin with; null where nobody said it: there are none then. */
  readonly publicUrl: string | null;
  readonly retentionMs: number;
  readonly datasetIdleMs: number;
  /** Of a model; null when it was taken down since. */
  readonly shapesOf: (model: string) => Manifest["shapes"] | null;
}

/** Links that are made with it are no URLs, and so are found and left out. */
const NOWHERE = "";

export async function messageOf(
  claimed: Pick<Claimed, "event" | "created_at" | "endpoint_id" | "rollout_id" | "dataset_id">,
  parts: MessageParts,
  nowMs: number,
): Promise<Buffer> {
  const { event, created_at } = claimed;
  const data = await dataOf(claimed, parts, nowMs);
  return Buffer.from(wireJsonText({ type: event, timestamp: created_at.toISOString(), data }));
}

/** What `GET` answers of whatever the message tells of. */
async function dataOf(
  { endpoint_id, rollout_id, dataset_id }: Pick<Claimed, "endpoint_id" | "rollout_id" | "dataset_id">,
  parts: MessageParts,
  nowMs: number,
): Promise<RolloutEnvelope | DatasetEnvelope | WebhookEnvelope> {
  if (rollout_id !== null) return rolloutData(rollout_id, parts, nowMs);
  if (dataset_id !== null) return datasetData(dataset_id, parts, nowMs);
  return webhookData(endpoint_id, parts);
}

/** Of a test. */
async function webhookData(id: EndpointId | null, { db }: MessageParts): Promise<WebhookEnvelope> {
  const endpoint = id && (await readEndpoint(db, id));
  if (!endpoint) throw new Error(`there is no endpoint ${id}`); // its delivery refers to it
  return webhookEnvelope(endpoint);
}

async function rolloutData(id: RolloutId, parts: MessageParts, nowMs: number): Promise<RolloutEnvelope> {
  const [rollout] = await parts.db.query<Rollout>(`SELECT ${ROLLOUT_COLUMNS} FROM rollouts WHERE id = $1`, [id]);
  if (!rollout) throw new Error(`there is no rollout ${id}`); // its delivery refers to it
  const videos = await parts.videoLinks.of(rollout, parts.publicUrl ?? NOWHERE, nowMs);
  return envelopeOf(rollout, {
    shapes: parts.shapesOf(rollout.model),
    videos: parts.publicUrl === null && !areWhole(videos) ? null : videos,
    running: false,
    queuePosition: null,
    expectedStartS: null,
    framesDone: null,
    retentionMs: parts.retentionMs,
  });
}

/** Those of a blob store that signs its own need nothing of the gateway's. */
const areWhole = (videos: Videos | null): boolean => videos?.urls.every((url) => URL.canParse(url)) ?? true;

async function datasetData(id: DatasetId, parts: MessageParts, nowMs: number): Promise<DatasetEnvelope> {
  const { db, publicUrl, retentionMs, datasetIdleMs: idleMs } = parts;
  const [dataset] = await db.query<Dataset>(`SELECT ${DATASET_COLUMNS} FROM datasets WHERE id = $1`, [id]);
  if (!dataset) throw new Error(`there is no dataset ${id}`); // its delivery refers to it
  const context = await datasetContext(db, dataset, { retentionMs, idleMs, publicUrl: publicUrl ?? NOWHERE, nowMs });
  const envelope = datasetEnvelope(dataset, context);
  return publicUrl === null ? { ...envelope, results: null } : envelope;
}

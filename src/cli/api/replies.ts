/** What the commands read of the API's answers. Everything else in them is passed on as it came. */
import { type Static, type TSchema, Type } from "typebox";

import { Nullable } from "#contract/nullable.ts";

/** Becomes part of file names, so it is none of a path. */
const Id = Type.String({ pattern: "^[A-Za-z0-9_-]{1,100}$" });
const Problem = Type.Object({ code: Type.String(), message: Type.String() });

export const RolloutReply = Type.Object({
  id: Id,
  model: Type.String(),
  created: Type.Integer(),
  status: Type.String(),
  queue_position: Nullable(Type.Integer()),
  // Absent where a server does not tell it yet.
  expected_start_s: Type.Optional(Nullable(Type.Integer())),
  /** Of one video. */
  frames: Type.Integer(),
  frames_done: Nullable(Type.Integer()),
  frames_total: Type.Integer(),
  batch_size: Type.Integer(),
  engine_wall_ms: Nullable(Type.Number()),
  // Absent where a server does not score yet; null where a rollout was not scored.
  psnr_db: Type.Optional(Nullable(Type.Number())),
  ssim: Type.Optional(Nullable(Type.Number())),
  lpips: Type.Optional(Nullable(Type.Number())),
  cost_mils: Type.Integer(),
  video_urls: Type.Array(Type.String()),
  request_id: Type.String(),
  error: Nullable(Problem),
});
export type RolloutReply = Static<typeof RolloutReply>;

/** Cursors are ids, or row numbers. */
const pageOf = <T extends TSchema>(item: T) =>
  Type.Object({
    data: Type.Array(item),
    has_more: Type.Boolean(),
    next: Type.Optional(Type.Union([Type.String(), Type.Integer(), Type.Null()])),
  });
export const RolloutPage = pageOf(RolloutReply);

const BadRow = Type.Object({
  line: Type.Optional(Nullable(Type.Integer())),
  n: Type.Optional(Nullable(Type.Integer())),
  id: Type.Optional(Nullable(Type.String())),
  code: Type.String(),
  message: Type.String(),
});
export const BadRows = Type.Array(BadRow);
export type BadRows = Static<typeof BadRows>;

export const DatasetReply = Type.Object({
  id: Id,
  name: Nullable(Type.String()),
  model: Type.String(),
  state: Type.String(),
  pause_reason: Nullable(Type.String()),
  message: Nullable(Type.String()),
  created: Type.Integer(),
  started: Nullable(Type.Integer()),
  finished: Nullable(Type.Integer()),
  rows: Type.Object({
    total: Type.Integer(),
    invalid: Type.Integer(),
    pending: Type.Integer(),
    running: Type.Integer(),
    succeeded: Type.Integer(),
    failed: Type.Integer(),
    cancelled: Type.Integer(),
    expired: Type.Integer(),
  }),
  frames: Type.Object({ expected: Type.Integer(), delivered: Type.Integer(), rows_unmeasured: Type.Integer() }),
  cost: Type.Object({
    price_mils_per_frame: Type.Integer(),
    estimated_mils: Type.Integer(),
    budget_mils: Nullable(Type.Integer()),
    held_mils: Type.Integer(),
    refunded_mils: Type.Integer(),
    spent_mils: Type.Integer(),
  }),
  progress: Type.Object({
    done: Type.Integer(),
    of: Type.Integer(),
    rows_per_min: Nullable(Type.Number()),
    eta_s: Nullable(Type.Number()),
  }),
  problems: Type.Optional(BadRows),
});
export type DatasetReply = Static<typeof DatasetReply>;
export const DatasetPage = pageOf(DatasetReply);

export const RowReply = Type.Object({
  n: Type.Integer(),
  id: Nullable(Type.String()),
  state: Type.String(),
  error: Nullable(Problem),
  rollout_id: Nullable(Id),
  request_id: Nullable(Type.String()),
  frames: Nullable(Type.Integer()),
  charged_mils: Type.Integer(),
  refunded_mils: Type.Integer(),
  engine_wall_ms: Nullable(Type.Number()),
  video_url: Nullable(Type.String()),
  video_bytes: Nullable(Type.Integer()),
});
export type RowReply = Static<typeof RowReply>;
export const RowPage = pageOf(RowReply);
export type Page<T> = { readonly data: T[]; readonly has_more: boolean; readonly next?: string | number | null };

export const WebhookReply = Type.Object({
  id: Id,
  url: Type.String(),
  events: Type.Array(Type.String()),
  description: Nullable(Type.String()),
  enabled: Type.Boolean(),
  disabled_reason: Nullable(Type.String()),
  created: Type.Integer(),
});
export type WebhookReply = Static<typeof WebhookReply>;
export const WebhookList = Type.Object({ data: Type.Array(WebhookReply) });
export const NewWebhookReply = Type.Object({ ...WebhookReply.properties, secret: Type.String() });
export const WebhookSecretReply = Type.Object({
  secret: Type.String(),
  previous_signs_until: Nullable(Type.Integer()),
});
export const DeletedReply = Type.Object({ id: Id, deleted: Type.Literal(true) });

export const DeliveryReply = Type.Object({
  id: Id,
  endpoint: Nullable(Type.String()),
  url: Type.String(),
  event: Type.String(),
  rollout: Nullable(Type.String()),
  dataset: Nullable(Type.String()),
  state: Type.String(),
  reason: Nullable(Type.String()),
  attempts: Type.Integer(),
  last_status: Nullable(Type.Integer()),
  last_error: Nullable(Type.String()),
  sending: Type.Boolean(),
  next_attempt_at: Nullable(Type.Integer()),
  created: Type.Integer(),
});
export type DeliveryReply = Static<typeof DeliveryReply>;
export const DeliveryPage = pageOf(DeliveryReply);
export const DeliveryWithLog = Type.Object({
  ...DeliveryReply.properties,
  log: Type.Array(
    Type.Object({
      n: Type.Integer(),
      at: Type.Number(),
      duration_ms: Type.Integer(),
      status: Nullable(Type.Integer()),
      error: Nullable(Type.String()),
      excerpt: Nullable(Type.String()),
    }),
  ),
});
export type DeliveryWithLog = Static<typeof DeliveryWithLog>;

export const BalanceReply = Type.Object({ balance_mils: Type.Integer() });

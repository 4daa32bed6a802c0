-- Asynchronous rollouts, datasets and their rows, uploads, webhooks.
--
-- Lock order of 0002, with what is new in it:
--   scheduler_leader -> customer -> dataset -> dataset row -> top-up -> payment -> api key -> rollout
--     -> account ('balance' before 'debt') -> idempotency key -> webhook delivery

CREATE TABLE datasets (
  id              text PRIMARY KEY CHECK (id ~ '^dataset_[0-9a-f]{32}$'),
  customer_id     text NOT NULL REFERENCES customers,
  -- Who pays for its rows; a resume with another key changes it.
  key_id          text NOT NULL REFERENCES api_keys,
  request_id      text NOT NULL,
  name            text CHECK (length(name) <= 200),
  model           text NOT NULL,
  metadata        jsonb NOT NULL DEFAULT '{}',
  -- src/datasets/states.ts says what leads where.
  state           text NOT NULL DEFAULT 'receiving'
                  CHECK (state IN ('receiving', 'ready', 'running', 'paused', 'cancelling', 'cancelled', 'completed', 'rejected')),
  pause_reason    text CHECK (pause_reason IN ('requested', 'insufficient_credits', 'budget_reached', 'key_unusable',
                                               'model_unavailable')),
  on_invalid      text NOT NULL CHECK (on_invalid IN ('skip', 'reject')),
  budget_mils     bigint CHECK (budget_mils >= 0),
  webhook_url     text CHECK (length(webhook_url) <= 2000),
  idempotency_key text CHECK (length(idempotency_key) BETWEEN 1 AND 255),
  -- SHA-256 of what was sent; NULL until all of it is in.
  fingerprint     bytea CHECK (length(fingerprint) = 32),
  -- Why it was rejected, or what a pause waits for, in words for its owner.
  message         text,
  created_at      timestamptz NOT NULL DEFAULT now(),
  -- All of it was received and checked.
  received_at     timestamptz,
  started_at      timestamptz,
  finished_at     timestamptz,
  -- Since when it waits for its owner; whatever the owner does with it begins this anew (src/datasets/idle.ts).
  resting_since   timestamptz,
  -- Retention has deleted its inputs, videos and results.
  files_deleted_at timestamptz,

  -- Kept in step with dataset_rows by whoever changes a row, in the same transaction and under this row's lock.
  rows_total      integer NOT NULL DEFAULT 0,
  rows_invalid    integer NOT NULL DEFAULT 0 CHECK (rows_invalid >= 0),
  rows_pending    integer NOT NULL DEFAULT 0 CHECK (rows_pending >= 0),
  rows_running    integer NOT NULL DEFAULT 0 CHECK (rows_running >= 0),
  rows_succeeded  integer NOT NULL DEFAULT 0 CHECK (rows_succeeded >= 0),
  rows_failed     integer NOT NULL DEFAULT 0 CHECK (rows_failed >= 0),
  rows_cancelled  integer NOT NULL DEFAULT 0 CHECK (rows_cancelled >= 0),
  rows_expired    integer NOT NULL DEFAULT 0 CHECK (rows_expired >= 0),
  -- Of the valid rows whose length is known before they run, and how many valid rows are not among them.
  frames_expected bigint NOT NULL DEFAULT 0 CHECK (frames_expected >= 0),
  rows_unmeasured integer NOT NULL DEFAULT 0 CHECK (rows_unmeasured >= 0),
  frames_delivered bigint NOT NULL DEFAULT 0 CHECK (frames_delivered >= 0),
  -- Charges of rows that run now; of rows that ended, all tries together; and what of the latter was refunded.
  held_mils       bigint NOT NULL DEFAULT 0 CHECK (held_mils >= 0),
  charged_mils    bigint NOT NULL DEFAULT 0 CHECK (charged_mils >= 0),
  refunded_mils   bigint NOT NULL DEFAULT 0 CHECK (refunded_mils BETWEEN 0 AND charged_mils),
  -- Frames of the row that the balance was too low for, while it is paused for that.
  needs_frames    integer CHECK (needs_frames >= 1),
  -- When its owner was last told that credits ran out: money that trickles in must not become a call for each row.
  told_short_at   timestamptz,
  -- While rows are put back for a retry: those up to this `n` have been. NULL: none are (src/datasets/retry.ts).
  retry_after     integer CHECK (retry_after >= 0),

  -- How fast rows end: how many did, and in how many seconds, both fading, as of then (src/datasets/pace.ts).
  pace_rows       double precision NOT NULL DEFAULT 0,
  pace_s          double precision NOT NULL DEFAULT 0,
  pace_at         timestamptz,

  -- Who works on it now: a name of that turn alone; and until when nobody else may.
  runner_id       text,
  runner_until    timestamptz,
  -- When it was last worked on: the one that waits longest goes first.
  worked_at       timestamptz NOT NULL DEFAULT now(),

  CHECK ((state = 'paused') = (pause_reason IS NOT NULL)),
  CHECK ((state IN ('ready', 'paused')) = (resting_since IS NOT NULL)),
  CHECK (retry_after IS NULL OR state IN ('running', 'paused')),
  CHECK ((state IN ('cancelled', 'completed', 'rejected')) = (finished_at IS NOT NULL)),
  CONSTRAINT datasets_rows_add_up
  CHECK (rows_total = rows_invalid + rows_pending + rows_running + rows_succeeded + rows_failed + rows_cancelled + rows_expired),
  CONSTRAINT datasets_idempotency_key_once UNIQUE (customer_id, idempotency_key)
);
CREATE INDEX datasets_customer ON datasets (customer_id, created_at DESC, id DESC);
CREATE INDEX datasets_to_work_on ON datasets (worked_at)
  WHERE state IN ('running', 'cancelling') OR (state = 'paused' AND (rows_running > 0 OR rows_pending = 0 OR retry_after IS NOT NULL));
CREATE INDEX datasets_short_of_credits ON datasets (customer_id) WHERE pause_reason = 'insufficient_credits';
CREATE INDEX datasets_unfinished ON datasets (state, pause_reason) WHERE finished_at IS NULL;
-- What counts against a customer's quotas (src/datasets/quotas.ts).
CREATE INDEX datasets_unfinished_of ON datasets (customer_id) WHERE finished_at IS NULL;
CREATE INDEX datasets_resting ON datasets (resting_since) WHERE resting_since IS NOT NULL;
CREATE INDEX datasets_to_clean ON datasets (finished_at) WHERE files_deleted_at IS NULL AND finished_at IS NOT NULL;

CREATE TABLE dataset_rows (
  dataset_id     text NOT NULL REFERENCES datasets,
  -- Its line in the manifest, or its place among the archive's rows; from 1.
  n              integer NOT NULL CHECK (n >= 1),
  -- NULL only where it is invalid and had none.
  row_id         text CHECK (row_id ~ '^[A-Za-z0-9_-][A-Za-z0-9_.-]{0,99}$'),
  state          text NOT NULL
                 CHECK (state IN ('invalid', 'pending', 'running', 'succeeded', 'failed', 'cancelled', 'expired')),
  -- RowSource and SamplingParams of src/datasets/row.ts; NULL where it is invalid.
  source         jsonb,
  params         jsonb,
  metadata       jsonb NOT NULL DEFAULT '{}',
  -- NULL while its actions are elsewhere and nobody has looked.
  num_actions    integer CHECK (num_actions >= 1),
  -- How often it was given to a rollout; 0: never. The rollout's id follows from (dataset, n, try), so that the database
  -- refuses to charge one try twice.
  try            integer NOT NULL DEFAULT 0 CHECK (try >= 0),
  -- Of the latest try, as is what follows.
  rollout_id     text,
  request_id     text,
  error_code     text,
  error_message  text,
  frames         integer CHECK (frames >= 0),
  engine_wall_ms real,
  video_key      text,
  video_bytes    bigint,
  -- All tries together.
  charged_mils   bigint NOT NULL DEFAULT 0 CHECK (charged_mils >= 0),
  refunded_mils  bigint NOT NULL DEFAULT 0 CHECK (refunded_mils BETWEEN 0 AND charged_mils),
  finished_at    timestamptz,
  PRIMARY KEY (dataset_id, n),
  CHECK (state = 'invalid' OR (row_id IS NOT NULL AND source IS NOT NULL AND params IS NOT NULL)),
  CHECK ((state IN ('invalid', 'failed')) = (error_code IS NOT NULL)),
  CHECK (state <> 'running' OR rollout_id IS NOT NULL),
  CHECK (state <> 'succeeded' OR video_key IS NOT NULL)
);
CREATE UNIQUE INDEX dataset_rows_id ON dataset_rows (dataset_id, row_id) WHERE state <> 'invalid';
CREATE INDEX dataset_rows_state ON dataset_rows (dataset_id, state, n);
-- What a runner takes up next. Without it, statistics of a time when most rows were pending make the planner walk the
-- primary key past all that have ended.
CREATE INDEX dataset_rows_pending ON dataset_rows (dataset_id, n) WHERE state = 'pending';

-- What an archive holds, while it comes in: its rows are made of it at the end, in whatever order the entries came. Empty
-- again once the dataset is received or rejected.
CREATE TABLE dataset_files (
  dataset_id    text NOT NULL REFERENCES datasets,
  -- Its place in the archive; the `n` of its blob (blobKeys.datasetInput).
  entry         integer NOT NULL CHECK (entry >= 1),
  name          text NOT NULL,
  -- The name without folders and extension: what makes a pair.
  stem          text NOT NULL,
  part          text NOT NULL CHECK (part IN ('frame', 'actions')),
  num_actions   integer CHECK (num_actions >= 1),
  error_code    text,
  error_message text,
  PRIMARY KEY (dataset_id, entry),
  CHECK ((error_code IS NULL) = (error_message IS NULL))
);
CREATE INDEX dataset_files_stem ON dataset_files (dataset_id, stem, entry);
CREATE INDEX dataset_files_name ON dataset_files (dataset_id, name);

-- A frame or actions that many rows of datasets may name.
CREATE TABLE uploads (
  id          text PRIMARY KEY CHECK (id ~ '^upload_[0-9a-f]{32}$'),
  customer_id text NOT NULL REFERENCES customers,
  bytes       integer NOT NULL CHECK (bytes > 0),
  sha256      bytea NOT NULL CHECK (length(sha256) = 32),
  created_at  timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX uploads_age ON uploads (created_at);
CREATE INDEX uploads_listed ON uploads (customer_id, created_at DESC, id DESC);

-- Rollouts ---------------------------------------------------------------------------------------------------------

ALTER TABLE rollouts
  ADD COLUMN webhook_url text CHECK (length(webhook_url) <= 2000),
  ADD COLUMN dataset_id text REFERENCES datasets,
  ADD COLUMN dataset_row integer,
  -- A worker must have begun it by then. NULL where somebody waits: then deadline_at alone counts.
  ADD COLUMN start_by timestamptz,
  -- Retention has deleted its inputs and videos.
  ADD COLUMN files_deleted_at timestamptz,
  ADD CONSTRAINT rollouts_dataset_row CHECK ((dataset_id IS NULL) = (dataset_row IS NULL)),
  DROP CONSTRAINT rollouts_route_check,
  ADD CONSTRAINT rollouts_route_check CHECK (route IN ('predict', 'batch', 'rollouts', 'dataset'));

-- A hundred thousand rows of a dataset must not stand between a customer and the list of the others.
DROP INDEX rollouts_customer;
CREATE INDEX rollouts_listed ON rollouts (customer_id, created_at DESC, id DESC) WHERE dataset_id IS NULL;
CREATE INDEX rollouts_of_dataset ON rollouts (dataset_id, created_at DESC, id DESC) WHERE dataset_id IS NOT NULL;
-- Redelivery is for whoever waited; a night's work that nobody waited for must not be looked through.
DROP INDEX rollouts_undelivered;
CREATE INDEX rollouts_undelivered ON rollouts (customer_id, fingerprint, finished_at)
  WHERE status = 'succeeded' AND delivered_at IS NULL AND waiter_id IS NOT NULL;
-- What was waited for, for its latencies: bulk work that ended since must not be looked through.
CREATE INDEX rollouts_latencies ON rollouts (model, finished_at) WHERE status = 'succeeded' AND lane = 'realtime';
CREATE INDEX rollouts_to_clean ON rollouts (finished_at) WHERE finished_at IS NOT NULL AND files_deleted_at IS NULL;

-- As in 0001, with one step out of an end: a dataset's rollout whose video got lost before its row could keep it has
-- failed after all, and is refunded all that it was charged (src/rollouts/take-back.ts).
CREATE OR REPLACE FUNCTION check_rollout_transition() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
  taken_back boolean := OLD.status = 'succeeded' AND NEW.status = 'failed' AND NEW.error_code = 'video_lost'
    AND OLD.dataset_id IS NOT NULL AND NEW.dataset_id = OLD.dataset_id
    AND OLD.refunded_mils = 0 AND NEW.refunded_mils = NEW.charge_mils AND NEW.frames_delivered = 0;
BEGIN
  IF NEW.status <> OLD.status AND NOT (
       (OLD.status = 'queued'     AND NEW.status IN ('dispatched', 'failed', 'cancelled', 'expired'))
    OR (OLD.status = 'dispatched' AND NEW.status IN ('succeeded', 'failed', 'cancelled', 'expired'))
    OR taken_back IS TRUE)
  THEN
    RAISE EXCEPTION 'rollout % cannot go from % to %', OLD.id, OLD.status, NEW.status;
  END IF;
  IF NEW.attempt < OLD.attempt THEN
    RAISE EXCEPTION 'rollout % cannot go back from attempt % to %', OLD.id, OLD.attempt, NEW.attempt;
  END IF;
  IF (NEW.customer_id, NEW.frames, NEW.price_mils_per_frame, NEW.charge_mils)
     <> (OLD.customer_id, OLD.frames, OLD.price_mils_per_frame, OLD.charge_mils)
     OR (OLD.finished_at IS NOT NULL AND NEW.refunded_mils <> OLD.refunded_mils AND taken_back IS NOT TRUE)
  THEN
    RAISE EXCEPTION 'what rollout % was charged, or refunded at its end, cannot change', OLD.id;
  END IF;
  RETURN NEW;
END $$;

-- Webhooks -----------------------------------------------------------------------------------------------------------

-- No secret is stored: each follows from one shared secret, who it is for, and its generation (src/webhooks/secrets.ts).
CREATE TABLE webhook_endpoints (
  id                text PRIMARY KEY CHECK (id ~ '^endpoint_[0-9a-f]{32}$'),
  customer_id       text NOT NULL REFERENCES customers,
  url               text NOT NULL CHECK (length(url) <= 2000),
  description       text CHECK (length(description) <= 200),
  -- Names of src/contract/webhooks.ts.
  events            text[] NOT NULL CHECK (cardinality(events) > 0),
  generation        integer NOT NULL DEFAULT 1 CHECK (generation >= 1),
  -- For a while after it the secret before signs, too.
  rotated_at        timestamptz,
  disabled_at       timestamptz,
  disabled_reason   text,
  created_at        timestamptz NOT NULL DEFAULT now(),
  -- Kept for the log of its deliveries.
  deleted_at        timestamptz,
  CHECK ((disabled_at IS NULL) = (disabled_reason IS NULL))
);
CREATE INDEX webhook_endpoints_customer ON webhook_endpoints (customer_id, created_at, id) WHERE deleted_at IS NULL;

-- What signs the webhooks that go to a rollout's or dataset's own `webhook_url`; a customer without a row is at generation 1.
CREATE TABLE webhook_signing (
  customer_id text PRIMARY KEY REFERENCES customers,
  generation  integer NOT NULL CHECK (generation >= 1),
  rotated_at  timestamptz NOT NULL
);

-- One message to one receiver, written by the transaction that ended the rollout or dataset: the outbox and the log.
CREATE TABLE webhook_deliveries (
  -- The `webhook-id` header: the same in every attempt.
  id              text PRIMARY KEY DEFAULT 'msg_' || replace(gen_random_uuid()::text, '-', ''),
  customer_id     text NOT NULL REFERENCES customers,
  -- NULL: to the webhook_url that came with the rollout or dataset.
  endpoint_id     text REFERENCES webhook_endpoints,
  url             text NOT NULL,
  event           text NOT NULL,
  rollout_id      text REFERENCES rollouts,
  dataset_id      text REFERENCES datasets,
  -- Host and port of the url, by which senders share themselves out; cut, because an index entry has a limit.
  receiver        text COLLATE "C" NOT NULL
                  GENERATED ALWAYS AS (coalesce(left(lower(substring(url FROM '^[A-Za-z]+://([^/?#]+)')), 100), '?')) STORED,
  state           text NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'delivered', 'failed')),
  -- Why it failed, in words for its owner.
  reason          text,
  -- Begun ones: the number says which sender's word counts (src/webhooks/deliveries.ts).
  attempts        integer NOT NULL DEFAULT 0 CHECK (attempts >= 0),
  -- Attempts that the schedule of retries does not count: from before a resend, or broken off by us.
  uncounted       integer NOT NULL DEFAULT 0 CHECK (uncounted BETWEEN 0 AND attempts),
  -- While a sender has it in hand, the end of its claim.
  next_attempt_at timestamptz NOT NULL DEFAULT now(),
  claimed_until   timestamptz,
  -- Asked for while a sender had it in hand: goes out once more afterwards.
  resend          boolean NOT NULL DEFAULT false,
  created_at      timestamptz NOT NULL DEFAULT now(),
  finished_at     timestamptz,
  -- A test that its owner asked for tells of nothing else than its endpoint.
  CHECK (num_nonnulls(rollout_id, dataset_id) = CASE WHEN event = 'webhook.test' THEN 0 ELSE 1 END),
  CHECK (event <> 'webhook.test' OR endpoint_id IS NOT NULL),
  CHECK ((state = 'pending') = (finished_at IS NULL)),
  CHECK ((state = 'failed') = (reason IS NOT NULL))
);
-- A rollout ends once, so each receiver hears of it once.
CREATE UNIQUE INDEX webhook_deliveries_once ON webhook_deliveries (rollout_id, endpoint_id) NULLS NOT DISTINCT
  WHERE rollout_id IS NOT NULL;
CREATE INDEX webhook_deliveries_due ON webhook_deliveries (customer_id, receiver, next_attempt_at)
  WHERE state = 'pending';
CREATE INDEX webhook_deliveries_oldest ON webhook_deliveries (next_attempt_at) WHERE state = 'pending';
CREATE INDEX webhook_deliveries_customer ON webhook_deliveries (customer_id, created_at DESC, id DESC);
CREATE INDEX webhook_deliveries_failed ON webhook_deliveries (customer_id, created_at DESC, id DESC)
  WHERE state = 'failed';
CREATE INDEX webhook_deliveries_endpoint ON webhook_deliveries (endpoint_id, created_at DESC, id DESC)
  WHERE endpoint_id IS NOT NULL;
CREATE INDEX webhook_deliveries_age ON webhook_deliveries (created_at);

CREATE TABLE webhook_attempts (
  delivery_id text NOT NULL REFERENCES webhook_deliveries ON DELETE CASCADE,
  n           integer NOT NULL CHECK (n >= 1),
  at          timestamptz NOT NULL,
  duration_ms integer NOT NULL CHECK (duration_ms >= 0),
  -- What the receiver answered, or why there was no answer.
  status      integer,
  error       text,
  -- The beginning of the answer's body.
  excerpt     text,
  PRIMARY KEY (delivery_id, n),
  CHECK ((status IS NULL) = (error IS NOT NULL))
);

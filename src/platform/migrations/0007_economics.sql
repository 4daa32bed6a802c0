-- What the frames of each pool earned, summed by the hour, so that a month's figures cost no walk through its rollouts.
--
-- Lock order of 0006, with what is new in it:
--   scheduler_leader -> pool -> customer -> … -> rollout -> hour of earnings -> account -> …

-- One row for each time that a pool had no ready worker; what came then waited for a start.
CREATE TABLE pool_gaps (
  model    text NOT NULL,
  began_at timestamptz NOT NULL,
  -- When a worker was ready; NULL: none is yet.
  ended_at timestamptz CHECK (ended_at >= began_at),
  PRIMARY KEY (model, began_at)
);
CREATE UNIQUE INDEX pool_gaps_open ON pool_gaps (model) WHERE ended_at IS NULL;
CREATE INDEX pool_gaps_by_age ON pool_gaps (ended_at);

-- Which hours have been summed. Whoever changes what an ended rollout earned sets rolled_at to NULL again, in the same
-- transaction; that hour is then read from its rollouts until the leader has summed it anew.
CREATE TABLE earnings_hours (
  hour             timestamptz PRIMARY KEY CHECK (hour = date_trunc('hour', hour, 'UTC')),
  rolled_at        timestamptz,
  -- Dollars of one accelerator in that hour, as the scheduler's setting then was: a later rent leaves past months as they were.
  gpu_usd_per_hour double precision CHECK (gpu_usd_per_hour >= 0),
  CHECK (rolled_at IS NULL OR gpu_usd_per_hour IS NOT NULL)
);
CREATE INDEX earnings_hours_open ON earnings_hours (hour) WHERE rolled_at IS NULL;
CREATE INDEX earnings_hours_rolled ON earnings_hours (hour) WHERE rolled_at IS NOT NULL;

-- Of the rollouts that ended in that hour.
CREATE TABLE pool_earnings (
  hour           timestamptz NOT NULL REFERENCES earnings_hours,
  model          text NOT NULL,
  -- Of which some frame was delivered.
  rollouts       bigint NOT NULL,
  frames         bigint NOT NULL,
  -- Charged and not refunded; and refunded.
  earned_mils    bigint NOT NULL,
  refunded_mils  bigint NOT NULL,
  -- Sums of the timings of those that succeeded, of which there are so many.
  timed          bigint NOT NULL,
  engine_wall_ms double precision NOT NULL,
  total_ms       double precision NOT NULL,
  -- Delivered frames of requests that came while the pool had no ready worker.
  gap_frames     bigint NOT NULL,
  PRIMARY KEY (hour, model)
);

-- What operators noted is read every minute, among a month of a pool's every change of size.
CREATE INDEX pool_events_noted ON pool_events (kind, model, id) WHERE kind <> 'scaled';

-- A re-price trigger is recorded once a month (of a committed customer: once for each).
CREATE UNIQUE INDEX pool_events_reprice_once
  ON pool_events (model, (detail ->> 'trigger'), (detail ->> 'month'), coalesce(detail ->> 'customer', ''))
  WHERE kind = 'reprice';

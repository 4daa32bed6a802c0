-- The worker pools as the leading scheduler sees and wants them, and what happened to them.
--
-- Lock order of 0003, with what is new in it:
--   scheduler_leader -> pool -> customer -> …

-- Written by the leader at each look, about once a second.
CREATE TABLE pools (
  model              text PRIMARY KEY,
  -- Who runs its workers; 'none': somebody else, and their numbers here are told from what they do.
  fleet              text NOT NULL CHECK (fleet IN ('local', 'kubernetes', 'none')),
  -- Ready and starting workers that there should be, and why: scheduler/scaling/policy.ts, Reason.
  desired            integer NOT NULL CHECK (desired >= 0),
  reason             jsonb NOT NULL CHECK (reason ? 'kind'),
  ready              integer NOT NULL CHECK (ready >= 0),
  starting           integer NOT NULL CHECK (starting >= 0),
  -- Told to go, and finishing what they have.
  draining           integer NOT NULL CHECK (draining >= 0),
  -- In the backlog or the queue, and active in the queue (also without a worker that lives); a rollout is as many samples as candidates.
  waiting_rollouts   integer NOT NULL CHECK (waiting_rollouts >= 0),
  waiting_samples    integer NOT NULL CHECK (waiting_samples >= 0),
  active_rollouts    integer NOT NULL CHECK (active_rollouts >= 0),
  active_samples     integer NOT NULL CHECK (active_samples >= 0),
  -- What waits, in seconds of one warm worker.
  waiting_work_s     double precision NOT NULL CHECK (waiting_work_s >= 0),
  -- Samples that a worker holds at once in a lane.
  samples_per_worker integer NOT NULL CHECK (samples_per_worker >= 1),
  -- Of a worker for one sample of a rollout of the usual length, as measured; NULL: nothing has been yet.
  seconds_per_sample double precision CHECK (seconds_per_sample > 0),
  cold_start_s       double precision NOT NULL CHECK (cold_start_s >= 0),
  minimum            integer NOT NULL CHECK (minimum >= 0),
  maximum            integer NOT NULL CHECK (maximum >= 0),
  scaledown_s        double precision NOT NULL CHECK (scaledown_s >= 0),
  always_warm_workers integer CHECK (always_warm_workers >= 1),
  -- Why the last worker died, while they keep dying.
  crash_loop         text,
  looked_at          timestamptz NOT NULL,
  -- What a fleet that is told by polling us was last asked for; NULL: never, or no such fleet.
  asked              integer CHECK (asked >= 0),
  asked_at           timestamptz
);

-- Seconds of workers, summed by the hour in which they passed; what the rent is for.
CREATE TABLE pool_hours (
  model       text NOT NULL,
  hour        timestamptz NOT NULL CHECK (hour = date_trunc('hour', hour, 'UTC')),
  starting_s  double precision NOT NULL DEFAULT 0 CHECK (starting_s >= 0),
  -- Taking jobs; those with at least one are in busy_s, too.
  ready_s     double precision NOT NULL DEFAULT 0 CHECK (ready_s >= 0),
  busy_s      double precision NOT NULL DEFAULT 0 CHECK (busy_s >= 0),
  draining_s  double precision NOT NULL DEFAULT 0 CHECK (draining_s >= 0),
  -- Starts that ended ready.
  cold_starts integer NOT NULL DEFAULT 0 CHECK (cold_starts >= 0),
  PRIMARY KEY (model, hour)
);

-- What an operator must be able to look up later. Added to and read; retention deletes what is old.
CREATE TABLE pool_events (
  id     bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  model  text NOT NULL,
  kind   text NOT NULL CHECK (kind ~ '^[a-z][a-z_]{0,39}$'),
  detail jsonb NOT NULL DEFAULT '{}',
  -- An operator's name, or the part of the system that wrote it.
  by     text NOT NULL CHECK (length(by) BETWEEN 1 AND 200),
  at     timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX pool_events_of_model ON pool_events (model, id DESC);
CREATE INDEX pool_events_by_age ON pool_events (at);

-- What an operator decided; no row: nothing beside the process's own settings.
CREATE TABLE pool_settings (
  model               text PRIMARY KEY,
  -- So many workers are kept whatever comes; NULL: none.
  always_warm_workers integer CHECK (always_warm_workers BETWEEN 1 AND 64),
  set_by              text NOT NULL CHECK (length(set_by) BETWEEN 1 AND 200),
  set_at              timestamptz NOT NULL DEFAULT now(),
  why                 text NOT NULL CHECK (length(why) BETWEEN 1 AND 2000)
);

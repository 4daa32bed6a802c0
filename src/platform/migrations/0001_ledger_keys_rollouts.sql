-- The whole control plane: customers, keys, the append-only ledger, prices, rollouts.
-- What the ledger needs from its first day, because nothing can be added to an append-only hash chain later:
-- a sequence number per account, the previous hash and the hash on every entry, the chain head on the account,
-- and a debt account beside the balance (a clawback may not push a balance below zero; the rest is debt).
--
-- Lock order of every statement that takes more than one of them:
--   scheduler_leader (FOR SHARE) -> api key (FOR SHARE) -> rollout -> account -> idempotency key
-- A rollout that is being inserted counts as none: nobody else can see it, let alone lock it.

-- Inference workers on the PostgreSQL queue connect to this database; nothing below is theirs to see.
REVOKE ALL ON SCHEMA public FROM PUBLIC;

CREATE TABLE customers (
  id         text PRIMARY KEY CHECK (id ~ '^cus_[a-z0-9_]{1,60}$'),
  email      text UNIQUE CHECK (email = lower(email)),
  created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE accounts (
  customer_id  text   NOT NULL REFERENCES customers,
  account      text   NOT NULL CHECK (account IN ('balance', 'debt')),
  balance_mils bigint NOT NULL DEFAULT 0 CHECK (balance_mils >= 0),
  seq          bigint NOT NULL DEFAULT 0,
  -- Head of the chain and the one before it: one UPDATE moves both, and its RETURNING gives an entry both hashes.
  prev_hash    bytea  NOT NULL DEFAULT '\x',
  head_hash    bytea  NOT NULL DEFAULT '\x',
  -- Entries are in time's order, too: now() is taken before the row's lock, so the later of two may carry the earlier time.
  last_entry_at timestamptz NOT NULL DEFAULT '-infinity',
  PRIMARY KEY (customer_id, account)
);

CREATE TABLE api_keys (
  id          text PRIMARY KEY,
  customer_id text NOT NULL REFERENCES customers,
  key_hash    bytea NOT NULL UNIQUE CHECK (length(key_hash) = 32),
  prefix      text NOT NULL,
  label       text,
  created_at  timestamptz NOT NULL DEFAULT now(),
  expires_at  timestamptz,
  revoked_at  timestamptz,
  -- NULL: the default of 50/s and a burst of 200.
  rate_per_s  integer CHECK (rate_per_s > 0),
  burst       integer CHECK (burst > 0)
);
CREATE INDEX api_keys_customer ON api_keys (customer_id);

-- List price where customer_id is null.
CREATE TABLE prices (
  id             bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  customer_id    text REFERENCES customers,
  mils_per_frame integer NOT NULL CHECK (mils_per_frame >= 0),
  effective_from timestamptz NOT NULL,
  recorded_at    timestamptz NOT NULL DEFAULT now(),
  note           text NOT NULL
);
INSERT INTO prices (mils_per_frame, effective_from, note) VALUES (5, '-infinity', 'list price: $0.0005 a frame');

-- The latest row in force wins, a customer's own before the list's.
CREATE FUNCTION price_in_force(customer text, at timestamptz) RETURNS integer LANGUAGE sql STABLE AS $$
  SELECT mils_per_frame FROM prices
   WHERE (customer_id = customer OR customer_id IS NULL) AND effective_from <= at
   ORDER BY customer_id IS NULL, effective_from DESC, id DESC LIMIT 1
$$;

CREATE TABLE rollouts (
  id                    text PRIMARY KEY,
  customer_id           text NOT NULL REFERENCES customers,
  key_id                text NOT NULL REFERENCES api_keys,
  request_id            text NOT NULL,
  route                 text NOT NULL CHECK (route IN ('predict', 'batch', 'rollouts')),
  model                 text NOT NULL,
  lane                  text NOT NULL CHECK (lane IN ('realtime', 'bulk')),
  status                text NOT NULL DEFAULT 'queued'
                        CHECK (status IN ('queued', 'dispatched', 'succeeded', 'failed', 'cancelled', 'expired')),
  attempt               integer NOT NULL DEFAULT 0 CHECK (attempt >= 0),
  k                     integer NOT NULL CHECK (k >= 1),
  actions_per_candidate integer NOT NULL CHECK (actions_per_candidate >= 1),
  frames                integer NOT NULL CHECK (frames = k * (actions_per_candidate + 1)),
  params                jsonb NOT NULL,
  -- SHA-256 of everything that decides the output: the same payload again finds its undelivered predecessor.
  fingerprint           bytea NOT NULL CHECK (length(fingerprint) = 32),
  price_mils_per_frame  integer NOT NULL CHECK (price_mils_per_frame >= 0),
  charge_mils           bigint NOT NULL CHECK (charge_mils = frames::bigint * price_mils_per_frame),
  refunded_mils         bigint NOT NULL DEFAULT 0 CHECK (refunded_mils BETWEEN 0 AND charge_mils),
  frames_delivered      integer CHECK (frames_delivered BETWEEN 0 AND frames),
  result                jsonb,
  error_code            text,
  error_message         text,
  -- The gateway process whose client is waiting; null for asynchronous work.
  waiter_id             text,
  created_at            timestamptz NOT NULL DEFAULT now(),
  dispatched_at         timestamptz,
  -- When the sweep looks at a dispatched row again.
  sweep_at              timestamptz,
  finished_at           timestamptz,
  delivered_at          timestamptz,
  deadline_at           timestamptz NOT NULL,
  CHECK ((status IN ('queued', 'dispatched')) = (finished_at IS NULL)),
  CHECK ((finished_at IS NULL) = (frames_delivered IS NULL)),
  CHECK ((status = 'queued') = (attempt = 0) OR finished_at IS NOT NULL),
  CHECK ((status = 'succeeded') = (result IS NOT NULL)),
  CHECK ((status = 'failed') = (error_code IS NOT NULL)),
  CHECK (status <> 'dispatched' OR sweep_at IS NOT NULL),
  -- Nothing refunded while it runs; afterwards exactly what was not delivered.
  CONSTRAINT rollouts_refund_is_exact
  CHECK (refunded_mils = CASE WHEN finished_at IS NULL THEN 0
                              ELSE charge_mils - frames_delivered::bigint * price_mils_per_frame END)
);
-- Whoever waits goes first, then first come, first served.
CREATE INDEX rollouts_backlog     ON rollouts (model, (lane = 'bulk'), created_at, id) WHERE status = 'queued';
CREATE INDEX rollouts_to_sweep    ON rollouts (sweep_at) WHERE status = 'dispatched';
CREATE INDEX rollouts_deadline    ON rollouts (deadline_at) WHERE status IN ('queued', 'dispatched');
CREATE INDEX rollouts_waited_for  ON rollouts (waiter_id) WHERE status IN ('queued', 'dispatched') AND waiter_id IS NOT NULL;
CREATE INDEX rollouts_finished    ON rollouts (finished_at) WHERE finished_at IS NOT NULL;
CREATE INDEX rollouts_customer    ON rollouts (customer_id, created_at DESC, id);
CREATE INDEX rollouts_undelivered ON rollouts (customer_id, fingerprint, finished_at)
  WHERE status = 'succeeded' AND delivered_at IS NULL;

-- The same table as src/rollouts/lifecycle.ts (test/rollouts/lifecycle.test.ts compares them).
CREATE FUNCTION check_rollout_transition() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF NEW.status <> OLD.status AND NOT (
       (OLD.status = 'queued'     AND NEW.status IN ('dispatched', 'failed', 'cancelled', 'expired'))
    OR (OLD.status = 'dispatched' AND NEW.status IN ('succeeded', 'failed', 'cancelled', 'expired')))
  THEN
    RAISE EXCEPTION 'rollout % cannot go from % to %', OLD.id, OLD.status, NEW.status;
  END IF;
  IF NEW.attempt < OLD.attempt THEN
    RAISE EXCEPTION 'rollout % cannot go back from attempt % to %', OLD.id, OLD.attempt, NEW.attempt;
  END IF;
  IF (NEW.customer_id, NEW.frames, NEW.price_mils_per_frame, NEW.charge_mils)
     <> (OLD.customer_id, OLD.frames, OLD.price_mils_per_frame, OLD.charge_mils)
     OR (OLD.finished_at IS NOT NULL AND NEW.refunded_mils <> OLD.refunded_mils)
  THEN
    RAISE EXCEPTION 'what rollout % was charged, or refunded at its end, cannot change', OLD.id;
  END IF;
  RETURN NEW;
END $$;
CREATE TRIGGER rollouts_transition BEFORE UPDATE ON rollouts FOR EACH ROW EXECUTE FUNCTION check_rollout_transition();

CREATE TABLE idempotency_keys (
  customer_id text NOT NULL REFERENCES customers,
  key         text NOT NULL CHECK (length(key) BETWEEN 1 AND 255),
  fingerprint bytea NOT NULL CHECK (length(fingerprint) = 32),
  rollout_id  text NOT NULL UNIQUE REFERENCES rollouts,
  created_at  timestamptz NOT NULL DEFAULT now(),
  CONSTRAINT idempotency_keys_once PRIMARY KEY (customer_id, key)
);
CREATE INDEX idempotency_keys_age ON idempotency_keys (created_at);

CREATE TABLE ledger_entries (
  customer_id        text   NOT NULL,
  account            text   NOT NULL,
  seq                bigint NOT NULL CHECK (seq >= 1),
  kind               text   NOT NULL CHECK (kind IN ('debit', 'credit', 'refund', 'adjustment', 'clawback')),
  amount_mils        bigint NOT NULL,
  balance_after_mils bigint NOT NULL CHECK (balance_after_mils >= 0),
  rollout_id         text   REFERENCES rollouts,
  -- The request id for debits and refunds, the payment's id for credits.
  reference          text   NOT NULL,
  detail             text   NOT NULL,
  created_at         timestamptz NOT NULL,
  prev_hash          bytea  NOT NULL CHECK (length(prev_hash) = CASE seq WHEN 1 THEN 0 ELSE 32 END),
  hash               bytea  NOT NULL CHECK (length(hash) = 32),
  PRIMARY KEY (customer_id, account, seq),
  FOREIGN KEY (customer_id, account) REFERENCES accounts,
  CHECK (CASE kind WHEN 'debit' THEN amount_mils <= 0 AND rollout_id IS NOT NULL
                   WHEN 'refund' THEN amount_mils > 0 AND rollout_id IS NOT NULL
                   WHEN 'credit' THEN amount_mils > 0
                   ELSE amount_mils <> 0 END),
  -- The separator of ledger_hash must not occur in what it separates, or two entries could share a hash.
  CHECK (position(E'\x1f' IN concat(rollout_id, reference, detail)) = 0)
);
-- Exactly once, said by the database: one debit and one refund a rollout, one credit a payment.
CREATE UNIQUE INDEX ledger_once_per_rollout ON ledger_entries (rollout_id, kind) WHERE rollout_id IS NOT NULL;
CREATE UNIQUE INDEX ledger_once_per_payment ON ledger_entries (reference) WHERE kind = 'credit' AND account = 'balance';

CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN RAISE EXCEPTION '% is append-only', TG_TABLE_NAME; END $$;
CREATE TRIGGER ledger_append_only BEFORE UPDATE OR DELETE ON ledger_entries
  FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER ledger_no_truncate BEFORE TRUNCATE ON ledger_entries
  FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- SHA-256 over the previous hash and the entry's fields, separated by a byte that none of them contains.
-- docs/architecture.md spells the layout out, so that a customer can recompute a statement.
CREATE FUNCTION ledger_hash(prev bytea, customer text, account text, seq bigint, kind text, amount bigint,
                            balance_after bigint, rollout text, reference text, detail text, at timestamptz)
RETURNS bytea LANGUAGE sql STABLE AS $$
  SELECT sha256(prev || convert_to(concat_ws(E'\x1f', customer, account, seq, kind, amount, balance_after,
    coalesce(rollout, ''), reference, detail,
    to_char(at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')), 'UTF8'))
$$;

-- One row. Whoever holds the scheduler's advisory lock raises the epoch; every write of a scheduler names its own.
CREATE TABLE scheduler_leader (
  only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
  epoch    bigint NOT NULL,
  holder   text NOT NULL,
  taken_at timestamptz NOT NULL
);
INSERT INTO scheduler_leader (epoch, holder, taken_at) VALUES (0, 'nobody', now());

-- A gateway renews its row while it lives. A synchronous rollout whose gateway is gone has lost its client.
CREATE TABLE gateway_leases (
  id      text PRIMARY KEY,
  seen_at timestamptz NOT NULL
);

-- Secrets that every gateway shares (the video URL signing key).
CREATE TABLE shared_secrets (
  name  text PRIMARY KEY,
  value bytea NOT NULL
);

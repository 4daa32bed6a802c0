-- Payments, debt, prices with notice, keys that say when they were used, and the operator's own doings.
--
-- Lock order of 0001, with what is new in it:
--   scheduler_leader -> customer -> top-up -> payment (its refunds' advisory lock first) -> api key -> rollout
--     -> account ('balance' before 'debt') -> idempotency key
-- An operator's reference is locked (advisory) before all of them.
-- The debt of a customer changes only under the row lock of the balance.

ALTER TABLE customers
  ADD COLUMN stripe_customer_id text UNIQUE,
  -- Closed: no key works and none can be made; refunds, disputes and the statement go on.
  ADD COLUMN closed_at timestamptz,
  -- What somebody signed up with. Nobody checked that it is theirs, so it identifies nobody and may be there twice; `email`
  -- is NULL beside it until an operator confirms it.
  ADD COLUMN signup_email text CHECK (length(signup_email) <= 254),
  ADD CONSTRAINT customers_one_address CHECK (email IS NULL OR signup_email IS NULL);
CREATE INDEX customers_signup_email ON customers (signup_email) WHERE signup_email IS NOT NULL;

-- A customer may rotate keys for years: what asks for those that can be used, or for the newest, reads no others.
DROP INDEX api_keys_customer;
CREATE INDEX api_keys_usable ON api_keys (customer_id, coalesce(expires_at, 'infinity')) WHERE revoked_at IS NULL;
CREATE INDEX api_keys_newest ON api_keys (customer_id, created_at DESC, id);

-- Beside the key and not on it: debits hold the key's row FOR SHARE, which an UPDATE would have to wait for.
CREATE TABLE api_key_usage (
  key_id       text PRIMARY KEY REFERENCES api_keys,
  last_used_at timestamptz NOT NULL
);

-- GCRA state for several gateways without Redis; losing it costs nothing but a fresh burst. Room on every page and no
-- index on the time, so that a request rewrites its row in place.
CREATE UNLOGGED TABLE rate_buckets (
  name    text PRIMARY KEY,
  full_at timestamptz NOT NULL
) WITH (fillfactor = 50);

-- The passwords of the processes' own roles lie in it, too: those are for the owner alone, who is above the policy.
ALTER TABLE shared_secrets ENABLE ROW LEVEL SECURITY;
CREATE POLICY shared_secrets_of_gateways ON shared_secrets USING (name NOT LIKE '% database role');

-- Prices ---------------------------------------------------------------------------------------------------------

-- NULL ends a customer's own price: from then on the list's is theirs again.
ALTER TABLE prices
  ALTER COLUMN mils_per_frame DROP NOT NULL,
  ADD CONSTRAINT prices_list_is_never_empty CHECK (mils_per_frame IS NOT NULL OR customer_id IS NOT NULL),
  ADD COLUMN operator text NOT NULL DEFAULT 'dream-engine',
  -- Why a rise came with less than the notice; NULL where it did not.
  ADD COLUMN override_reason text;

CREATE OR REPLACE FUNCTION price_in_force(customer text, at timestamptz) RETURNS integer LANGUAGE sql STABLE AS $$
  SELECT coalesce(
    (SELECT mils_per_frame FROM prices WHERE customer_id = customer AND effective_from <= at
      ORDER BY effective_from DESC, id DESC LIMIT 1),
    (SELECT mils_per_frame FROM prices WHERE customer_id IS NULL AND effective_from <= at
      ORDER BY effective_from DESC, id DESC LIMIT 1))
$$;

-- Each authentication and each debit asks for the latest row of one customer, and of the list.
CREATE INDEX prices_customer ON prices (customer_id, effective_from DESC, id DESC);

CREATE TRIGGER prices_append_only BEFORE UPDATE OR DELETE ON prices
  FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER prices_no_truncate BEFORE TRUNCATE ON prices
  FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- What an operator did to somebody's money, keys or price, and why.
CREATE TABLE operator_actions (
  id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  at          timestamptz NOT NULL DEFAULT now(),
  operator    text NOT NULL,
  action      text NOT NULL,
  customer_id text REFERENCES customers,
  reason      text NOT NULL,
  -- The ledger entry's reference where there is one.
  reference   text UNIQUE,
  details     jsonb NOT NULL DEFAULT '{}'
);
-- From here on nobody is given credit by hand without a row; the auditor lets earlier credits pass.
INSERT INTO operator_actions (operator, action, reason) VALUES ('dream-engine', 'begin', 'actions are recorded from here on');
CREATE INDEX operator_actions_customer ON operator_actions (customer_id, id);
CREATE TRIGGER operator_actions_append_only BEFORE UPDATE OR DELETE ON operator_actions
  FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER operator_actions_no_truncate BEFORE TRUNCATE ON operator_actions
  FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- Payments by Stripe ---------------------------------------------------------------------------------------------

-- A Checkout session that we asked for. Its id travels in the metadata of everything Stripe makes of it.
CREATE TABLE topups (
  id              text PRIMARY KEY CHECK (id ~ '^topup_[0-9a-f]{32}$'),
  customer_id     text NOT NULL REFERENCES customers,
  request_id      text NOT NULL,
  idempotency_key text CHECK (length(idempotency_key) BETWEEN 1 AND 255),
  amount_cents    integer NOT NULL CHECK (amount_cents > 0),
  -- NULL until Stripe has answered.
  session_id      text UNIQUE,
  session_url     text,
  state           text NOT NULL DEFAULT 'open' CHECK (state IN ('open', 'paid', 'failed', 'expired')),
  created_at      timestamptz NOT NULL DEFAULT now(),
  UNIQUE (customer_id, idempotency_key)
);
CREATE INDEX topups_customer ON topups (customer_id, created_at);

-- What Stripe says about one payment (pi_…), from whichever event came first; the ledger follows this row:
-- credited once it is paid and known to be ours, clawed back as far as it was refunded or is disputed.
CREATE TABLE payments (
  id                text PRIMARY KEY,
  -- NULL while only a refund or dispute has told of it.
  topup_id          text UNIQUE REFERENCES topups,
  paid_cents        integer CHECK (paid_cents > 0),
  -- The most that Stripe ever said is refunded in all, refunds that failed later included.
  refunded_cents    integer NOT NULL DEFAULT 0 CHECK (refunded_cents >= 0),
  credited_mils     bigint  NOT NULL DEFAULT 0 CHECK (credited_mils >= 0),
  clawed_back_mils  bigint  NOT NULL DEFAULT 0 CHECK (clawed_back_mils BETWEEN 0 AND credited_mils),
  -- The event that a statement shows for it; NULL when reconciliation found the payment.
  credited_by_event text,
  -- Why money that Stripe holds was not credited (another currency, another amount, unknown top-up); NULL: nothing wrong.
  problem           text,
  -- What an operator decided about the problem, which is NULL from then on.
  resolution        text,
  first_seen_at     timestamptz NOT NULL DEFAULT now()
);
-- What somebody has to look at; the scheduler counts them every few seconds.
CREATE INDEX payments_problem ON payments (id) WHERE problem IS NOT NULL;

CREATE TABLE payment_disputes (
  id           text PRIMARY KEY,
  payment_id   text NOT NULL REFERENCES payments,
  amount_cents integer NOT NULL CHECK (amount_cents >= 0),
  -- inquiry: Stripe has not taken the money (yet); one that closed may still become a dispute. won is final.
  state        text NOT NULL CHECK (state IN ('inquiry', 'inquiry_closed', 'open', 'won', 'lost'))
);
CREATE INDEX payment_disputes_payment ON payment_disputes (payment_id);

-- Single refunds. They name their payment and nothing of ours, and may be told before it; so those of other products
-- sold through the same account are here, too, without a payments row.
CREATE TABLE payment_refunds (
  id            text PRIMARY KEY,
  payment_id    text NOT NULL,
  amount_cents  integer NOT NULL CHECK (amount_cents >= 0),
  -- failed (or cancelled): the money is ours again, weeks later sometimes.
  state         text NOT NULL CHECK (state IN ('pending', 'succeeded', 'failed')),
  first_seen_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX payment_refunds_payment ON payment_refunds (payment_id);
CREATE INDEX payment_refunds_time ON payment_refunds (first_seen_at);

-- What Stripe took back of a payment by refunds, in whatever order it told: the refunds that did not fail, or where not
-- all of them are known yet, the most that it said in all, without those that failed.
CREATE FUNCTION refunded_cents(payment text, most_ever integer) RETURNS bigint LANGUAGE sql STABLE AS $$
  SELECT greatest(coalesce(sum(amount_cents) FILTER (WHERE state <> 'failed'), 0),
                  most_ever - coalesce(sum(amount_cents) FILTER (WHERE state = 'failed'), 0))
    FROM payment_refunds WHERE payment_id = payment
$$;

-- Every event that was taken in, once, and what came of it.
CREATE TABLE stripe_events (
  id          text PRIMARY KEY,
  type        text NOT NULL,
  created_at  timestamptz NOT NULL,
  received_at timestamptz NOT NULL DEFAULT now(),
  outcome     text NOT NULL
);
CREATE INDEX stripe_events_received ON stripe_events (received_at);

-- Signed events about our money that this version cannot read. One that is read later gets its row above, too.
CREATE TABLE stripe_events_unread (
  id            text PRIMARY KEY,
  type          text NOT NULL,
  why           text NOT NULL,
  first_seen_at timestamptz NOT NULL DEFAULT now()
);

-- The last time that the scheduler compared everything with Stripe, and what disagreed, by kind.
CREATE TABLE stripe_reconciled (
  only_one      boolean PRIMARY KEY DEFAULT true CHECK (only_one),
  at            timestamptz NOT NULL,
  disagreements jsonb NOT NULL
);

-- The ledger -----------------------------------------------------------------------------------------------------

-- Entries are in time's order on disk, too, so the smallest kind of index finds a month or a day.
CREATE INDEX ledger_entries_time ON ledger_entries USING brin (created_at) WITH (pages_per_range = 32, autosummarize = on);
CREATE INDEX ledger_entries_reference ON ledger_entries (reference) WHERE kind IN ('credit', 'adjustment', 'clawback');

-- Results of `dream-engine ledger verify` and its timer.
CREATE TABLE ledger_checks (
  id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  checked_at timestamptz NOT NULL DEFAULT now(),
  -- How many disagreements, and the first of them.
  problems   integer NOT NULL CHECK (problems >= 0),
  examples   jsonb NOT NULL DEFAULT '[]'
);

-- Where an account stands after an entry of a batch; `posted`: whether that entry was taken up.
CREATE TYPE ledger_link AS (posted boolean, seq bigint, balance_mils bigint, prev_hash bytea, hash bytea);

-- The next entry of a batch (src/ledger/post.ts). One that the balance cannot bear is left out, and those after it are
-- tried all the same, as if each had come alone.
CREATE FUNCTION next_ledger_link(last ledger_link, head_seq bigint, head_balance bigint, head_hash bytea, customer text,
                                 account text, kind text, amount bigint, rollout text, reference text, detail text,
                                 at timestamptz) RETURNS ledger_link LANGUAGE plpgsql STABLE AS $$
DECLARE
  after_seq     bigint := coalesce(last.seq, head_seq) + 1;
  after_balance bigint := coalesce(last.balance_mils, head_balance) + amount;
  before_hash   bytea  := coalesce(last.hash, head_hash);
BEGIN
  IF after_balance < 0 THEN
    RETURN (false, after_seq - 1, after_balance - amount, NULL, before_hash)::ledger_link;
  END IF;
  RETURN (true, after_seq, after_balance, before_hash,
          ledger_hash(before_hash, customer, account, after_seq, kind, amount, after_balance, rollout, reference, detail,
                      at))::ledger_link;
END $$;

-- As a window function over the entries of one account in their order: each row's link in the chain.
CREATE AGGREGATE ledger_chain(head_seq bigint, head_balance bigint, head_hash bytea, customer text, account text,
                              kind text, amount bigint, rollout text, reference text, detail text, at timestamptz) (
  SFUNC = next_ledger_link,
  STYPE = ledger_link
);

-- One entry, unconditionally; what src/ledger/post.ts does inside a statement. Raises where a balance would fall below zero.
CREATE FUNCTION post_ledger_entry(customer text, to_account text, entry_kind text, amount bigint, entry_reference text,
                                  entry_detail text) RETURNS void LANGUAGE sql AS $$
  WITH moved AS (
    UPDATE accounts a
       SET balance_mils = a.balance_mils + amount,
           seq = a.seq + 1,
           prev_hash = a.head_hash,
           head_hash = ledger_hash(a.head_hash, a.customer_id, a.account, a.seq + 1, entry_kind, amount,
                                   a.balance_mils + amount, NULL, entry_reference, entry_detail,
                                   greatest(now(), a.last_entry_at)),
           last_entry_at = greatest(now(), a.last_entry_at)
     WHERE a.customer_id = customer AND a.account = to_account
    RETURNING a.*
  )
  INSERT INTO ledger_entries (customer_id, account, seq, kind, amount_mils, balance_after_mils, rollout_id,
                              reference, detail, created_at, prev_hash, hash)
  SELECT customer_id, account, seq, entry_kind, amount, balance_mils, NULL,
         entry_reference, entry_detail, last_entry_at, prev_hash, head_hash
    FROM moved
$$;

-- Whoever owes us has no balance: what comes in (top-up, refund, adjustment) pays the debt first, in the same statement.
-- The new entry's statement holds the balance's row lock, so nobody else changes the debt now.
CREATE FUNCTION repay_debt() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
  repaid bigint;
BEGIN
  SELECT least(debt.balance_mils, balance.balance_mils) INTO repaid
    FROM accounts debt JOIN accounts balance USING (customer_id)
   WHERE debt.customer_id = NEW.customer_id AND debt.account = 'debt' AND balance.account = 'balance';
  IF repaid > 0 THEN
    PERFORM post_ledger_entry(NEW.customer_id, 'balance', 'clawback', -repaid, NEW.reference, 'debt repaid');
    PERFORM post_ledger_entry(NEW.customer_id, 'debt', 'clawback', -repaid, NEW.reference, 'debt repaid');
  END IF;
  RETURN NULL;
END $$;
CREATE TRIGGER ledger_repay_debt AFTER INSERT ON ledger_entries FOR EACH ROW
  WHEN (NEW.account = 'balance' AND NEW.amount_mils > 0) EXECUTE FUNCTION repay_debt();

-- Dispatch that is fair among customers: the backlog is read by customer, a few rows of each.

-- The column is written into every row there is, and each index built anew: some 30 s a million, longer than statements may take.
SET LOCAL statement_timeout = '2h';

-- The line that a rollout waits in. Scored ones have one of their own, because those of a customer who has enough at the
-- workers must not be looked through. A column and not a condition: "lane = 'bulk'" compared with a constant becomes
-- another condition, which no index of it knows.
ALTER TABLE rollouts ADD COLUMN line text GENERATED ALWAYS AS (CASE WHEN scored THEN 'scored' ELSE lane END) STORED;

DROP INDEX rollouts_backlog;
DROP INDEX rollouts_backlog_scored;
CREATE INDEX rollouts_backlog ON rollouts (model, line, customer_id, created_at, id) WHERE status = 'queued';

-- Twice the weight is given twice the frames, while others wait too.
ALTER TABLE customers
  ADD COLUMN dispatch_weight integer NOT NULL DEFAULT 1 CHECK (dispatch_weight BETWEEN 1 AND 100);

-- Rollouts that are scored against the base spec: twice the work, so a customer has only a few of them at the workers.

ALTER TABLE rollouts
  ADD COLUMN scored boolean NOT NULL DEFAULT false,
  ADD CONSTRAINT rollouts_scored CHECK (NOT scored OR (lane = 'bulk' AND k = 1 AND dataset_id IS NULL));

-- Scored rollouts wait beside the others: those of a customer who has enough at the workers must not be looked through.
DROP INDEX rollouts_backlog;
CREATE INDEX rollouts_backlog ON rollouts (model, (lane = 'bulk'), scored, created_at, id) WHERE status = 'queued';
CREATE INDEX rollouts_backlog_scored ON rollouts (model, customer_id, created_at, id) WHERE status = 'queued' AND scored;

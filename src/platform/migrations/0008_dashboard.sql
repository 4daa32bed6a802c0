-- What was refunded of late, for the operator's overview: a failure among a night's successes is found without reading them.
CREATE INDEX rollouts_refunded ON rollouts (finished_at DESC) WHERE refunded_mils > 0;

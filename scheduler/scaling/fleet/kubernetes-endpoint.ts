/**
 * `GET /scaling/<model>` of a scheduler: how many workers there should be, for KEDA's trigger `metrics-api` (infra/k8s). Every
 * scheduler answers, from the database, so it does not matter which one is asked. What nobody renewed lately is no answer but an
 * error, because KEDA leaves a pool as it is on an error and follows any number.
 */
import type { Sql } from "#platform/database.ts";
import type { Log } from "#platform/log.ts";
import type { SmallAnswer, SmallRequest } from "#platform/metrics.ts";
import { isSameSecret } from "#platform/same-secret.ts";
import { readAsked } from "#pools/asked.ts";

/** A leader says it once a second, and another one takes over within five. */
const STALE_AFTER_S = 15;
const PATH = /^\/scaling\/([^/]+)$/;

export interface ScalingEndpointOptions {
  readonly db: Sql;
  readonly models: readonly string[];
  /** Whoever asks has to bring it; without one, only this machine may ask. */
  readonly token: string | undefined;
  readonly log: Log;
}

/** For `startMetricsServer`. Null: another path. */
export function createScalingEndpoint({ db, models, token, log }: ScalingEndpointOptions) {
  return async ({ method, path, authorization, fromLoopback }: SmallRequest): Promise<SmallAnswer | null> => {
    const model = PATH.exec(path)?.[1];
    if (model === undefined) return null;
    if (token === undefined ? !fromLoopback : !isSameSecret(authorization ?? "", `Bearer ${token}`)) {
      return refusal(401, "expected the bearer token of SCALING_TOKEN");
    }
    if (method !== "GET") return refusal(405, "expected GET");
    if (!models.includes(model)) return refusal(404, `expected a model of this system: ${models.join(", ")}`);
    try {
      const asked = await readAsked(db, model);
      if (asked === null) return refusal(503, "no scheduler has said yet how many workers there should be");
      const { workers, age_s } = asked;
      if (age_s > STALE_AFTER_S) {
        return refusal(503, `no scheduler has said for ${Math.floor(age_s)} s how many workers there should be`);
      }
      return { status: 200, body: { model, desired: workers, age_s } };
    } catch (error) {
      log.warn({ err: error, model }, "could not read how many workers there should be");
      return refusal(503, "the database does not answer");
    }
  };
}

const refusal = (status: number, message: string): SmallAnswer => ({ status, body: { error: message } });

/** What the caller of a rollout that did not succeed is told. Its refund was committed with its state. */
import { ApiError, type ErrorCode } from "#contract/errors.ts";
import type { FailureCode } from "#contract/jobs.ts";
import { usdText } from "#contract/mils.ts";
import type { Rollout } from "#rollouts/rollout.ts";

/** 500 and not 503, because the published client repeats a 503: a poison input must not run three times. */
const CODE_OF_FAILURE: Readonly<Record<FailureCode, ErrorCode>> = {
  engine_failed: "engine_failed",
  engine_timeout: "engine_failed",
  bad_input: "engine_failed",
  lost: "rollout_lost",
  internal: "internal",
};

export function errorOf(rollout: Rollout): ApiError {
  const refund = `refunded $${usdText(rollout.refunded_mils)} of $${usdText(rollout.charge_mils)}`;
  switch (rollout.status) {
    case "cancelled":
      return new ApiError("rollout_cancelled", `${rollout.id} was cancelled; ${refund}`);
    case "expired":
      return new ApiError("deadline_exceeded", `${rollout.id} did not finish before its deadline; ${refund}`);
    case "failed": {
      const code = isFailureCode(rollout.error_code) ? CODE_OF_FAILURE[rollout.error_code] : "engine_failed";
      return new ApiError(code, `${rollout.id} failed (${rollout.error_message ?? "no reason given"}); ${refund}`);
    }
    case "queued":
    case "dispatched":
    case "succeeded":
      break;
  }
  throw new Error(`${rollout.id} is ${rollout.status}, which is no failure`);
}

function isFailureCode(code: string | null): code is FailureCode {
  return code !== null && Object.hasOwn(CODE_OF_FAILURE, code);
}

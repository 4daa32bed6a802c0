/** What an operator can do about a bucket that cannot be used. */
import type { Config } from "#platform/config.ts";

/** A sentence or two; null for what is none of the usual ones. */
export function s3Problem(
  error: unknown,
  settings: Pick<Config, "BLOB_URL" | "S3_ENDPOINT" | "S3_REGION">,
): string | null {
  if (!(error instanceof Error)) return null;
  const bucket = /^s3:\/\/([^/]+)/.exec(settings.BLOB_URL ?? "")?.[1];
  if (bucket === undefined) return null;
  const where = settings.S3_ENDPOINT ?? "AWS";
  const region = settings.S3_REGION ?? "the SDK's default";
  const expected = regionOf(error);
  switch (codeOf(error)) {
    case "NoSuchBucket":
      return `there is no bucket ${bucket} at ${where}; make it, or correct BLOB_URL`;
    case "PermanentRedirect":
    case "AuthorizationHeaderMalformed":
    case "IllegalLocationConstraintException":
      return `bucket ${bucket} is in ${expected ?? "another region"}, and S3_REGION is ${region}; set it to the bucket's`;
    case "CredentialsProviderError":
      return (
        "no credentials were found: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or AWS_PROFILE, " +
        "or give this machine a role"
      );
    case "InvalidAccessKeyId":
    case "InvalidToken":
    case "InvalidClientTokenId":
      return `${where} does not know the access key; correct AWS_ACCESS_KEY_ID, or S3_ENDPOINT`;
    case "SignatureDoesNotMatch":
      return "the secret key is not that of the access key; correct AWS_SECRET_ACCESS_KEY";
    case "ExpiredToken":
    case "TokenRefreshRequired":
      return "the credentials have expired; get new ones";
    case "RequestTimeTooSkewed":
      return "the clock of this machine is wrong (or the store's); set it by NTP";
    case "AccessDenied":
    case "Forbidden":
    case "403":
      return `these credentials may not do that in bucket ${bucket}; docs/operations.md has the policy they need`;
    case "ECONNREFUSED":
    case "ENOTFOUND":
    case "EAI_AGAIN":
    case "EHOSTUNREACH":
    case "ECONNRESET":
    case "EPIPE":
    case "ETIMEDOUT":
    case "TimeoutError":
      return `${where} does not answer (${error.message}); correct S3_ENDPOINT, or let this machine reach it`;
    default:
      return error.message === "Region is missing" ? "no region is known; set S3_REGION to the bucket's" : null;
  }
}

/** Node's code of a connection that failed, else the store's or the SDK's name of the error. */
function codeOf(error: Error): string {
  const { code } = error as { code?: unknown };
  return typeof code === "string" ? code : error.name;
}

/** Some stores say which region they would have taken. */
function regionOf(error: Error): string | null {
  const { Region, $response } = error as { Region?: unknown; $response?: { headers?: Record<string, string> } };
  if (typeof Region === "string") return Region;
  return $response?.headers?.["x-amz-bucket-region"] ?? null;
}

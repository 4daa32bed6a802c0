/**
 * Signed links for reading, by AWS Signature Version 4 in the query
 * (https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-query-string-auth.html). The SDK's presigner gives the same links at
 * many times the cost, which is too much for those of a dataset's rows. A test compares the two.
 */
import { createHash, createHmac } from "node:crypto";

export interface S3Credentials {
  readonly accessKeyId: string;
  readonly secretAccessKey: string;
  readonly sessionToken?: string | undefined;
}

export interface S3Link {
  /** Scheme, host and path, as the store is asked; the path needs no escaping. */
  readonly url: string;
  readonly region: string;
  readonly credentials: S3Credentials;
  readonly signedAtMs: number;
  readonly lifetimeS: number;
  /** What else the query says, such as `response-content-type`. */
  readonly query: Readonly<Record<string, string>>;
}

export function signS3Link({ url, region, credentials, signedAtMs, lifetimeS, query }: S3Link): string {
  const { host, pathname } = new URL(url);
  const stamp = new Date(signedAtMs).toISOString().replaceAll(/[-:]|\.\d{3}/g, ""); // 20261122T140000Z
  const day = stamp.slice(0, 8);
  const scope = `${day}/${region}/s3/aws4_request`;
  const { accessKeyId, secretAccessKey, sessionToken } = credentials;
  const parameters = Object.entries({
    "X-Amz-Algorithm": "AWS4-HMAC-SHA256",
    "X-Amz-Content-Sha256": "UNSIGNED-PAYLOAD",
    "X-Amz-Credential": `${accessKeyId}/${scope}`,
    "X-Amz-Date": stamp,
    "X-Amz-Expires": String(lifetimeS),
    ...(sessionToken === undefined ? {} : { "X-Amz-Security-Token": sessionToken }),
    "X-Amz-SignedHeaders": "host",
    ...query,
  });
  const canonicalQuery = parameters
    .map(([name, value]) => `${escape(name)}=${escape(value)}`)
    .toSorted() // by code unit, as the standard wants
    .join("&");
  const request = ["GET", pathname, canonicalQuery, `host:${host}`, "", "host", "UNSIGNED-PAYLOAD"].join("\n");
  const hash = createHash("sha256").update(request).digest("hex");
  const toSign = ["AWS4-HMAC-SHA256", stamp, scope, hash].join("\n");
  const key = hmac(hmac(hmac(hmac(`AWS4${secretAccessKey}`, day), region), "s3"), "aws4_request");
  return `${url}?${canonicalQuery}&X-Amz-Signature=${hmac(key, toSign).toString("hex")}`;
}

const hmac = (key: string | Buffer, text: string): Buffer => createHmac("sha256", key).update(text).digest();

/** Everything but the unreserved characters of RFC 3986. */
const escape = (text: string): string =>
  encodeURIComponent(text).replaceAll(/[!'()*]/g, (char) => `%${char.charCodeAt(0).toString(16).toUpperCase()}`);

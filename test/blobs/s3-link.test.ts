import { GetObjectCommand, S3Client } from "@aws-sdk/client-s3";
import { getSignedUrl } from "@aws-sdk/s3-request-presigner";
import { afterEach, expect, test, vi } from "vitest";

import { createS3Blobs } from "#blobs/s3.ts";

const KEY = "datasets/dataset_0123456789abcdef0123456789abcdef/videos/Row-1_a.b.mp4";
const SIGNED_AT_MS = Date.UTC(2026, 10, 22, 14, 5, 9, 250);

afterEach(() => {
  vi.unstubAllEnvs();
});

interface Case {
  readonly bucket?: string;
  readonly endpoint?: string;
  readonly forcePathStyle?: boolean;
  readonly token?: string;
  readonly region?: string;
}

const CASES: readonly [what: string, where: Case][] = [
  ["AWS", {}],
  ["AWS, with a session", { token: "a/session+token==" }],
  ["AWS in China", { region: "cn-north-1" }],
  ["AWS, a bucket with dots", { bucket: "dream.blobs.example" }],
  ["another store, bucket in the path", { endpoint: "https://minio.example.com:9000", forcePathStyle: true }],
  ["another store below a path", { endpoint: "http://example.com/store", forcePathStyle: true }],
  ["another store, bucket in the host", { endpoint: "https://objects.example.com" }],
];

test.each(CASES)("a link is the one that the SDK would sign: %s", async (_what, place) => {
  const { bucket = "dream-blobs", endpoint, forcePathStyle = false, token, region = "eu-central-1" } = place;
  const credentials = { accessKeyId: "AKIAEXAMPLE", secretAccessKey: "secret/with+signs" };
  vi.stubEnv("AWS_ACCESS_KEY_ID", credentials.accessKeyId);
  vi.stubEnv("AWS_SECRET_ACCESS_KEY", credentials.secretAccessKey);
  vi.stubEnv("AWS_SESSION_TOKEN", token);
  const where = { region, forcePathStyle };
  const clock = { now: () => SIGNED_AT_MS };
  const blobs = createS3Blobs({ bucket, prefix: "a/b", endpoint, publicEndpoint: undefined, clock, ...where });
  const filename = "Row-1 (a) 'b'*.mp4";
  const ours = await blobs.presignedUrl?.(KEY, { lifetimeMs: 3_600_000, filename });

  const sdk = new S3Client({
    ...where,
    ...(endpoint === undefined ? {} : { endpoint }),
    credentials: { ...credentials, ...(token === undefined ? {} : { sessionToken: token }) },
    requestChecksumCalculation: "WHEN_REQUIRED",
    responseChecksumValidation: "WHEN_REQUIRED",
  });
  const command = new GetObjectCommand({
    Bucket: bucket,
    Key: `a/b/${KEY}`,
    ResponseContentType: "video/mp4",
    ResponseContentDisposition: `inline; filename="${filename}"`,
  });
  const theirs = await getSignedUrl(sdk, command, { expiresIn: 3_600, signingDate: new Date(SIGNED_AT_MS) });
  expect(partsOf(ours ?? "")).toEqual(partsOf(theirs));
});

const partsOf = (link: string): object => {
  const { origin, pathname, searchParams } = new URL(link);
  return { origin, pathname, query: Object.fromEntries(searchParams) };
};

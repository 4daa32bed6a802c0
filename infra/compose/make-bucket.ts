/**
 * Makes the bucket of docker-compose.yml, and says in its policy what each process's key may do there. Run as the store's
 * root, and again at each start: what is there stays, the policy is written anew.
 */
import { CreateBucketCommand, PutBucketPolicyCommand, S3Client } from "@aws-sdk/client-s3";

import { readConfig } from "#platform/config.ts";

/** The same rights as in docs/operations.md, for keys that are named as in docker-compose.yml. */
export function bucketPolicy(bucket: string): object {
  const everything = `arn:aws:s3:::${bucket}/*`;
  const keepers = ["dream-gateway", "dream-scheduler", "dream-runner", "dream-operator"];
  return {
    Version: "2012-10-17",
    Statement: [
      allow(keepers, ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"], everything),
      // Its messages bring links, which are worth what the key that signed them may do.
      allow(["dream-notifier"], ["s3:GetObject"], everything),
      allow(
        ["dream-worker"],
        ["s3:GetObject", "s3:PutObject", "s3:AbortMultipartUpload"],
        `arn:aws:s3:::${bucket}/rollouts/*`,
      ),
      // Without it what is not there would look like what is forbidden.
      allow([...keepers, "dream-notifier", "dream-worker"], ["s3:ListBucket"], `arn:aws:s3:::${bucket}`),
    ],
  };
}

function allow(keys: readonly string[], actions: readonly string[], resource: string): object {
  return { Effect: "Allow", Principal: { AWS: keys }, Action: actions, Resource: resource };
}

async function makeBucket(env: NodeJS.ProcessEnv): Promise<void> {
  const { BLOB_URL, S3_ENDPOINT, S3_REGION } = readConfig(env);
  const bucket = /^s3:\/\/([^/]+)$/.exec(BLOB_URL ?? "")?.[1];
  if (bucket === undefined || S3_ENDPOINT === undefined) {
    throw new Error("BLOB_URL, S3_ENDPOINT: expected s3://bucket, without a prefix, and where the store is");
  }
  const client = new S3Client({ endpoint: S3_ENDPOINT, region: S3_REGION ?? "us-east-1", forcePathStyle: true });
  try {
    await client.send(new CreateBucketCommand({ Bucket: bucket })).catch((error: unknown) => {
      if (!(error instanceof Error) || error.name !== "BucketAlreadyOwnedByYou") throw error;
    });
    const Policy = JSON.stringify(bucketPolicy(bucket));
    await client.send(new PutBucketPolicyCommand({ Bucket: bucket, Policy }));
  } finally {
    client.destroy();
  }
  console.log(`${bucket}: the bucket and its policy`);
}

if (import.meta.main) await makeBucket(process.env);

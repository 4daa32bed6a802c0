/**
 * The blob store in a bucket of S3, or of anything that speaks its protocol. A write shows when it is complete, by the
 * store's own promise, and readers see one version: a download that breaks off goes on in the same version or fails.
 */
import { open, rm } from "node:fs/promises";
import { Readable } from "node:stream";
import { buffer } from "node:stream/consumers";

import {
  CopyObjectCommand,
  DeleteObjectCommand,
  GetObjectCommand,
  HeadObjectCommand,
  paginateListObjectsV2,
  PutObjectCommand,
  S3Client,
  type S3ClientConfig,
} from "@aws-sdk/client-s3";
import { Upload } from "@aws-sdk/lib-storage";
import { getSignedUrl } from "@aws-sdk/s3-request-presigner";

import type { Clock } from "#platform/clock.ts";

import { type ByteRange, checkedKey, checkPrefix, checkRange, isBlobKey } from "./blob-key.ts";
import { BlobNotFound, type BlobStore } from "./blob-store.ts";

export interface S3Options {
  readonly bucket: string;
  /** Before every key: "" or segments without a slash at either end. */
  readonly prefix: string;
  /** Undefined: the SDK's own chain (AWS_REGION, the profile). */
  readonly region: string | undefined;
  /** Undefined: AWS. */
  readonly endpoint: string | undefined;
  /** Where clients reach the store, when not at `endpoint`; null when they cannot reach it. */
  readonly publicEndpoint: string | null | undefined;
  /** The bucket in the path instead of the host name. */
  readonly forcePathStyle: boolean;
  readonly clock: Clock;
  /** How long a connection may be silent in the middle of something; tests shorten it. */
  readonly idleTimeoutMs?: number;
}

/** A file larger than this goes in parts of it, four at a time; the store takes no smaller ones than 5 MiB. */
const PART_BYTES = 8 * 1024 * 1024;
const PARTS_AT_ONCE = 4;
const PARTS_MAX = 10_000;
/** Of one request, the first included; in between the SDK waits, longer each time. */
const ATTEMPTS_MAX = 4;
const CONNECT_TIMEOUT_MS = 5_000;
/** Slow readers hold a connection each, and whoever finds none free within the timeout above fails. */
const CONNECTIONS_MAX = 512;
/** Without a byte in either direction. A reader who pauses for longer gets the rest over another connection. */
const IDLE_TIMEOUT_MS = 20_000;
/** To the answer's first byte, the upload of a part included. */
const REQUEST_TIMEOUT_MS = 60_000;
/** How often in a row a download may break off and go on, unless each try brings this much. */
const RESUMES_MAX = 3;
const PROGRESS_BYTES_MIN = 64 * 1024;

/** Credentials come from the SDK's standard chain. Idle connections keep no process alive, so there is nothing to stop. */
export function createS3Blobs(options: S3Options): BlobStore {
  const { bucket, prefix, publicEndpoint, clock } = options;
  const client = createClient(options, options.endpoint);
  const signer = publicEndpoint === undefined ? client : createClient(options, publicEndpoint ?? undefined);
  const root = prefix === "" ? "" : `${prefix}/`;
  const at = (key: string): { Bucket: string; Key: string } => ({ Bucket: bucket, Key: root + checkedKey(key) });

  async function openBody(key: string, range?: ByteRange, etag?: string): Promise<OpenBody> {
    const reply = await client
      .send(
        new GetObjectCommand({
          ...at(key),
          ...(range ? { Range: `bytes=${range.start}-${range.end}` } : {}),
          ...(etag === undefined ? {} : { IfMatch: etag }),
        }),
      )
      .catch((error: unknown) => {
        throw isAbsence(error) ? new BlobNotFound(key) : error;
      });
    const body = reply.Body as Readable; // in Node it is one
    // Whoever reads gets the error as well; a body that nobody reads any more must not end the process with it.
    body.on("error", () => undefined);
    if (reply.ContentLength === undefined || (range && reply.ContentRange === undefined)) {
      body.destroy();
      throw new Error(`${key}: the store answered without ${range ? "the range" : "the size"}`);
    }
    return { body, bytes: reply.ContentLength, start: range?.start ?? 0, etag: reply.ETag };
  }

  /** The bytes of `first`; where the connection breaks, the rest of the same version over another one. */
  async function* bytesOf(key: string, { body: firstBody, bytes, start, etag }: OpenBody): AsyncGenerator<Buffer> {
    let body = firstBody;
    let received = 0;
    for (let failures = 0; ;) {
      const before = received;
      try {
        for await (const chunk of body as AsyncIterable<Buffer>) {
          received += chunk.length;
          yield chunk;
        }
        if (received !== bytes) throw new Error(`${key}: the store sent ${received} of ${bytes} bytes`);
        return;
      } catch (error) {
        if (received >= bytes) throw error;
        failures = received - before >= PROGRESS_BYTES_MIN ? 1 : failures + 1;
        if (failures > RESUMES_MAX || etag === undefined) throw error;
        ({ body } = await openBody(key, { start: start + received, end: start + bytes - 1 }, etag));
      }
    }
  }

  async function put(key: string, body: Uint8Array): Promise<void> {
    await client.send(new PutObjectCommand({ ...at(key), Body: body, ContentLength: body.byteLength }));
  }

  async function stream(key: string, range?: ByteRange): Promise<Readable> {
    if (range) checkRange(range);
    const first = await openBody(key, range).catch((error: unknown) => {
      // A range that begins behind the last byte holds nothing.
      if (nameOf(error) === "InvalidRange") return null;
      throw error;
    });
    if (!first) return Readable.from([]);
    const readable = Readable.from(bytesOf(key, first), { objectMode: false });
    return readable.once("close", () => first.body.destroy()); // also when nobody has begun to read
  }

  return {
    put,
    stream,

    async putFile(key, localPath) {
      const target = at(key);
      const file = await open(localPath);
      try {
        const { size } = await file.stat();
        if (size <= PART_BYTES) {
          await put(key, await file.readFile());
        } else {
          const upload = new Upload({
            client,
            params: { ...target, Body: file.createReadStream({ autoClose: false }), ContentLength: size },
            partSize: Math.max(PART_BYTES, Math.ceil(size / PARTS_MAX)),
            queueSize: PARTS_AT_ONCE,
          });
          await upload.done(); // takes the parts back where it fails
        }
      } finally {
        await file.close();
      }
      await rm(localPath);
    },

    async copy(from, to) {
      const source = at(from);
      // Keys hold no character that would have to be escaped here. The store refuses more than 5 GB.
      const command = new CopyObjectCommand({ ...at(to), CopySource: `${bucket}/${source.Key}` });
      await client.send(command).catch(async (error: unknown) => {
        if (isAbsence(error)) throw new BlobNotFound(from);
        // A blob onto itself, which the store refuses: it is there already, or it is not.
        if (from !== to || nameOf(error) !== "InvalidRequest") throw error;
        await client.send(new HeadObjectCommand(source)).catch((inner: unknown) => {
          throw isAbsence(inner) ? new BlobNotFound(from) : inner;
        });
      });
    },

    async get(key) {
      return buffer(await stream(key));
    },

    async info(key) {
      try {
        const { ContentLength, LastModified } = await client.send(new HeadObjectCommand(at(key)));
        return { key, bytes: ContentLength ?? 0, modified_ms: LastModified?.getTime() ?? 0 };
      } catch (error) {
        if (isAbsence(error)) return null;
        throw error;
      }
    },

    async delete(key) {
      await client.send(new DeleteObjectCommand(at(key)));
    },

    async *list(keyPrefix) {
      checkPrefix(keyPrefix);
      for await (const page of paginateListObjectsV2({ client }, { Bucket: bucket, Prefix: root + keyPrefix })) {
        for (const { Key = "", Size = 0, LastModified } of page.Contents ?? []) {
          const key = Key.slice(root.length);
          // Others may keep something in the bucket, such as a console's folder markers.
          if (isBlobKey(key)) yield { key, bytes: Size, modified_ms: LastModified?.getTime() ?? 0 };
        }
      }
    },

    async presignedUrl(key, { lifetimeMs, filename }) {
      if (publicEndpoint === null) return null;
      const credentials = await signer.config.credentials();
      // The link would end with the credentials that signed it.
      if (credentials.expiration && credentials.expiration.getTime() < clock.now() + lifetimeMs) return null;
      const command = new GetObjectCommand({
        ...at(key),
        ResponseContentType: "video/mp4",
        ResponseContentDisposition: `inline; filename="${filename}"`,
      });
      const expiresIn = Math.floor(lifetimeMs / 1000);
      return getSignedUrl(signer, command, { expiresIn, signingDate: new Date(clock.now()) });
    },
  };
}

interface OpenBody {
  readonly body: Readable;
  readonly bytes: number;
  /** Of the first byte in the blob. */
  readonly start: number;
  readonly etag: string | undefined;
}

function createClient(
  { region, forcePathStyle, idleTimeoutMs = IDLE_TIMEOUT_MS }: S3Options,
  endpoint: string | undefined,
): S3Client {
  const config: S3ClientConfig = {
    forcePathStyle,
    maxAttempts: ATTEMPTS_MAX,
    requestHandler: {
      connectionTimeout: CONNECT_TIMEOUT_MS,
      socketTimeout: idleTimeoutMs,
      requestTimeout: REQUEST_TIMEOUT_MS,
      throwOnRequestTimeout: true,
      httpAgent: { keepAlive: true, maxSockets: CONNECTIONS_MAX },
      httpsAgent: { keepAlive: true, maxSockets: CONNECTIONS_MAX },
    },
    // The SDK's own trailing checksums are refused by stores that do not know them.
    requestChecksumCalculation: "WHEN_REQUIRED",
    responseChecksumValidation: "WHEN_REQUIRED",
    // Waiting for "100 Continue" costs a connection for each large body, and seconds where the store does not say it.
    expectContinueHeader: false,
    ...(endpoint === undefined ? {} : { endpoint }),
    // Elsewhere the region is part of the signature only, and this is what such stores expect.
    ...(region !== undefined ? { region } : endpoint === undefined ? {} : { region: "us-east-1" }),
  };
  return new S3Client(config);
}

const nameOf = (error: unknown): string => (error instanceof Error ? error.name : "");

/** HEAD answers have no body, so they say no more than "not found". A bucket that is missing is no absent blob. */
const isAbsence = (error: unknown): boolean => ["NoSuchKey", "NotFound"].includes(nameOf(error));

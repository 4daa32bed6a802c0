/** Writes zips, honest ones and others, by the specification (PKWARE APPNOTE); independent of the reader. */
import { crc32, deflateRawSync } from "node:zlib";

export interface ZipEntry {
  readonly name: string;
  readonly body?: Buffer | string;
  /** Instead of a body: compressed bytes, with what the headers say of them. */
  readonly raw?: Buffer;
  readonly size?: number;
  readonly crc?: number;
  readonly stored?: boolean;
  readonly encrypted?: boolean;
  readonly method?: number;
  readonly unixMode?: number;
}

export function zip(entries: readonly ZipEntry[]): Buffer {
  const files: Buffer[] = [];
  const directory: Buffer[] = [];
  let offset = 0;
  for (const entry of entries) {
    const body = Buffer.from(entry.body ?? "");
    const data = entry.raw ?? (entry.stored ? body : deflateRawSync(body));
    const name = Buffer.from(entry.name);
    const common = Buffer.alloc(26);
    common.writeUInt16LE(20, 0); // version needed
    common.writeUInt16LE((entry.encrypted ? 1 : 0) | 0x800, 2); // UTF-8 names
    common.writeUInt16LE(entry.method ?? (entry.stored && !entry.raw ? 0 : 8), 4);
    common.writeUInt16LE(0, 6); // time
    common.writeUInt16LE(0x21, 8); // 1980-01-01
    common.writeUInt32LE(entry.crc ?? crc32(body), 10);
    common.writeUInt32LE(data.length, 14);
    common.writeUInt32LE(entry.size ?? body.length, 18);
    common.writeUInt16LE(name.length, 22);
    const local = Buffer.concat([Buffer.from("PK\x03\x04", "latin1"), common, name, data]);
    const tail = Buffer.alloc(14);
    tail.writeUInt32LE(((entry.unixMode ?? 0o100644) << 16) >>> 0, 6);
    tail.writeUInt32LE(offset, 10);
    directory.push(Buffer.concat([Buffer.from("PK\x01\x02\x14\x03", "latin1"), common, tail, name]));
    files.push(local);
    offset += local.length;
  }
  const central = Buffer.concat(directory);
  const end = Buffer.alloc(22);
  end.write("PK\x05\x06", 0, "latin1");
  end.writeUInt16LE(entries.length, 8);
  end.writeUInt16LE(entries.length, 10);
  end.writeUInt32LE(central.length, 12);
  end.writeUInt32LE(offset, 16);
  return Buffer.concat([...files, central, end]);
}

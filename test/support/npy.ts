/** The smallest .npy there is: float32, C order, version 1.0; for tests that need actions to send. */
const MAGIC = Buffer.from("\x93NUMPY\x01\x00", "latin1");
const HEADER_ALIGNMENT_BYTES = 64;

export const npy = {
  write(values: Float32Array, shape: readonly number[]): Buffer {
    const dict = `{'descr': '<f4', 'fortran_order': False, 'shape': (${shape.join(", ")},), }`;
    const unpadded = MAGIC.length + 2 + dict.length + 1;
    const header =
      dict + " ".repeat((HEADER_ALIGNMENT_BYTES - (unpadded % HEADER_ALIGNMENT_BYTES)) % HEADER_ALIGNMENT_BYTES) + "\n";
    const length = Buffer.alloc(2);
    length.writeUInt16LE(header.length);
    const data = Buffer.from(values.buffer, values.byteOffset, values.byteLength);
    return Buffer.concat([MAGIC, length, Buffer.from(header, "latin1"), data]);
  },
  /** Values of a file that `write` (or numpy, for float32 in C order) made. */
  read(file: Buffer): Float32Array {
    const start = MAGIC.length + 2 + file.readUInt16LE(MAGIC.length);
    return new Float32Array(file.buffer.slice(file.byteOffset + start, file.byteOffset + file.byteLength));
  },
};

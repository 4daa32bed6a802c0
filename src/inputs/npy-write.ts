/** Writes a `.npy` file (format version 1): what numpy.save makes of a two-dimensional float32 array. */
const ALIGNMENT = 64;
const PREFIX_BYTES = 10;

/** `values` row-major, `[rows, columns]`. */
export function npyOf(values: readonly number[], rows: number, columns: number): Buffer {
  const dictionary = `{'descr': '<f4', 'fortran_order': False, 'shape': (${rows}, ${columns}), }`;
  const bare = PREFIX_BYTES + dictionary.length + 1;
  const header = `${dictionary}${" ".repeat((ALIGNMENT - (bare % ALIGNMENT)) % ALIGNMENT)}\n`;
  const file = Buffer.alloc(PREFIX_BYTES + header.length + values.length * 4);
  file.write("\x93NUMPY\x01\x00", 0, "latin1");
  file.writeUInt16LE(header.length, 8);
  file.write(header, PREFIX_BYTES, "latin1");
  let at = PREFIX_BYTES + header.length;
  for (const value of values) at = file.writeFloatLE(value, at);
  return file;
}

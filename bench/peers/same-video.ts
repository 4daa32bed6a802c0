/** Whether two systems dreamed the same video: the comparison means nothing otherwise. */
import { spawn } from "node:child_process";
import { once } from "node:events";

/** Both encode nearly equal pixels (the engines differ by one level at most) in the same way. */
const PSNR_MIN = 38;

/** Throws when the mp4 has another number of frames, or another content than `reference` (an mp4; null: any). */
export async function expectVideo(
  ffmpegPath: string,
  video: Buffer,
  reference: Buffer | null,
  frames: number,
  { width, height }: { readonly width: number; readonly height: number },
): Promise<void> {
  const pixels = await decode(ffmpegPath, video);
  const got = pixels.length / (width * height * 3);
  if (got !== frames) throw new Error(`expected a video of ${frames} frames of ${width}×${height}, got ${got}`);
  if (!reference) return;
  const wanted = await decode(ffmpegPath, reference);
  const psnr = psnrOf(pixels, wanted);
  if (!(psnr >= PSNR_MIN)) throw new Error(`another video than the first system's: PSNR ${psnr.toFixed(1)} dB`);
}

function psnrOf(a: Buffer, b: Buffer): number {
  let sum = 0;
  for (const [i, value] of a.entries()) sum += (value - (b[i] ?? Number.NaN)) ** 2;
  return 10 * Math.log10(255 ** 2 / (sum / a.length));
}

async function decode(ffmpegPath: string, video: Buffer): Promise<Buffer> {
  const options = ["-v", "error", "-i", "pipe:0", "-f", "rawvideo", "-pix_fmt", "rgb24", "pipe:1"];
  const ffmpeg = spawn(ffmpegPath, options, { stdio: ["pipe", "pipe", "inherit"] });
  ffmpeg.stdin.on("error", () => undefined); // it ended early: its exit code tells
  ffmpeg.stdin.end(video);
  const exited = once(ffmpeg, "close");
  const chunks: Buffer[] = [];
  for await (const chunk of ffmpeg.stdout) chunks.push(chunk as Buffer);
  const [code] = (await exited) as [number | null];
  if (code !== 0) throw new Error(`ffmpeg could not decode what should be an mp4 (exit code ${code})`);
  return Buffer.concat(chunks);
}

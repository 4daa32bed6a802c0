import type { RolloutReply } from "../api/replies.ts";

/** How close its video is to that of the base spec, for people; null where it was not scored. */
export function scoreText({ psnr_db, ssim, lpips }: RolloutReply): string | null {
  if (psnr_db == null || ssim == null || lpips == null) return null;
  return `PSNR ${psnr_db.toFixed(2)} dB, SSIM ${ssim.toFixed(4)}, LPIPS ${lpips.toFixed(4)}`;
}

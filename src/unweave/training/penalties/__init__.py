"""What makes latents sparse besides choosing them: penalties on `f_i ||d_i||`, one idea a file."""

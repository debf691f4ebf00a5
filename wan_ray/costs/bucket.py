"""Bucket: rows of one shape, which are the same work."""

from typing import NamedTuple

from wan_ray.variants import get_variant


class Bucket(NamedTuple):
    """What decides how much work a row is.

    width and height are 0 where the row's image decides. num_unguided_steps: those that do not run the model on the
    negative prompt too. num_references: VACE's pictures, each a latent frame more to denoise.
    """

    variant: str
    task: str
    width: int
    height: int
    num_frames: int
    num_inference_steps: int
    num_unguided_steps: int = 0
    num_references: int = 0

    def sized(self) -> "Bucket":
        """The same with pixels: an unknown size is taken to be the model's own, whose area the image's will have."""
        width, height = get_variant(self.variant).sizes[0]
        return self if self.width else self._replace(width=width, height=height)

    @property
    def num_passes(self) -> int:
        """Of the model, in all steps of a clip."""
        return 2 * self.num_inference_steps - self.num_unguided_steps

    @property
    def num_texts(self) -> int:
        """1 where no step is guided, else 2: the prompt and the negative one."""
        return 1 if self.num_unguided_steps == self.num_inference_steps else 2

    @property
    def num_pixels(self) -> int:
        """Of one frame."""
        bucket = self.sized()
        return bucket.width * bucket.height

    @property
    def num_latent_frames(self) -> int:
        """Latent frames that are denoised."""
        return (self.num_frames - 1) // 4 + 1 + self.num_references

    @property
    def num_tokens(self) -> int:
        """Of the DiT, for a whole clip: 16 by 16 pixels of a latent frame each."""
        bucket = self.sized()
        return self.num_latent_frames * (bucket.width // 16) * (bucket.height // 16)

    def __str__(self) -> str:
        """As people write it: t2v-14B at 832x480x81, and +2 for two references."""
        bucket = self.sized()
        references = f"+{bucket.num_references}" if bucket.num_references else ""
        return f"{bucket.variant} at {bucket.width}x{bucket.height}x{bucket.num_frames}{references}"

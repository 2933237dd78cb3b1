"""MulT augmentation: a third vector, fused of image and text by a crossmodal transformer (thesis, section 4.2)."""

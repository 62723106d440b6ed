"""Haemorrhage probabilities, suspicious slices and heat-maps of one head CT."""

from meddinov3_stroke.ich_infer import main

if __name__ == "__main__":
    raise SystemExit(main())

"""`python -m meddinov3_stroke` is the command `meddinov3-stroke`."""

from meddinov3_stroke.cli import main

if __name__ == "__main__":
    raise SystemExit(main())

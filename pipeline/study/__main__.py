"""`python -m pipeline.study`: does the method work, and where?"""

from pipeline.study.command import main

if __name__ == "__main__":
    raise SystemExit(main())

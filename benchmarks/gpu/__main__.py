import sys

if __name__ == "__main__":  # loader processes import this module too, and need nothing of it
    from benchmarks.gpu.command import main

    sys.exit(main())

import sys

try:
    from pyllama_long.cli import main
except KeyboardInterrupt:
    print("pyllama-long: stopped", file=sys.stderr)
    sys.exit(130)

if __name__ == "__main__":
    main()

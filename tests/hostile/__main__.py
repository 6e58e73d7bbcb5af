if __name__ == "__main__":  # the processes that only read import this file, too, and need no torch
    from tests.hostile.figures import main

    main()

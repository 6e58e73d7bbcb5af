if __name__ == "__main__":  # the processes that are started for the rows import this file, too
    from tests.hostile.table import main

    main()

from chexpert_hf.cli.app import main

main()

from voxpipe.cli.main import main

main()

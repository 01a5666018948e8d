from dtkd_edge.cli import main

main()

from snnfast.auto.command import main

main()

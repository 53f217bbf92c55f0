module earshot.example/echo

go 1.19

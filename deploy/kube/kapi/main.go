// kapi is a whole Kubernetes in one program, chosen by its first argument or its name, for tests of the chart
// (../cluster.sh). The parts are those of the release; only addons.go is our own.
package main

import (
	"context"
	"os"
	"path/filepath"

	"k8s.io/component-base/cli"
	_ "k8s.io/component-base/logs/json/register"
	_ "k8s.io/component-base/metrics/prometheus/clientgo"
	_ "k8s.io/component-base/metrics/prometheus/version"
	kubectl "k8s.io/kubectl/pkg/cmd"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllers "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	proxy "k8s.io/kubernetes/cmd/kube-proxy/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
	kubelet "k8s.io/kubernetes/cmd/kubelet/app"

	"github.com/spf13/cobra"
)

func main() {
	name := filepath.Base(os.Args[0])
	if name == "kapi" && len(os.Args) > 1 {
		name = os.Args[1]
		os.Args = os.Args[1:]
	}
	var c *cobra.Command
	switch name {
	case "apiserver", "kube-apiserver":
		c = apiserver.NewAPIServerCommand()
	case "controller-manager", "kube-controller-manager":
		c = controllers.NewControllerManagerCommand()
	case "scheduler", "kube-scheduler":
		c = scheduler.NewSchedulerCommand()
	case "kubectl":
		c = kubectl.NewDefaultKubectlCommand()
		if err := cli.RunNoErrOutput(c); err != nil {
			println(err.Error())
			os.Exit(1)
		}
		return
	case "kubelet":
		c = kubelet.NewKubeletCommand(context.Background())
	case "kube-proxy":
		c = proxy.NewProxyCommand()
	case "addons":
		addons()
		return
	default:
		println("usage: kapi apiserver|controller-manager|scheduler|kubelet|kube-proxy|kubectl|addons")
		os.Exit(2)
	}
	os.Exit(cli.Run(c))
}
